"""Prompts in pairs: a clean one, a corrupted one of equal length, and the tokens that matter.

A task is a function of a Hugging Face tokenizer that returns `PromptPairs`: indirect object
identification (`ioi_pairs`), Colored Objects (`colored_objects_pairs`), two control tasks
(`greater_than_pairs`, `capital_pairs`), and a reader's own data (`pairs_from_file`,
`colored_objects_from_file`). `word_tokenizer` is a small tokenizer that has every word of the
tasks as one token. Whether a prompt starts with a BOS token is the tokenizer's own habit.
"""

import csv
import io
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from replib.errors import UsageError

# --- Indirect object identification ---------------------------------------------------------

# {a} and {b} are the two names, {s} is the repeated one; the answer follows the final " to".
IOI_TEMPLATES = (
    "When {a} and {b} arrived at the {place}, {s} handed the {object} to",
    "After {a} and {b} had lunch at the {place}, {s} gave a {object} to",
    "While {a} and {b} were waiting near the {place}, {s} showed the {object} to",
    "Last week {a} and {b} met at the {place}, and {s} sold a {object} to",
    "Yesterday {a} and {b} walked to the {place}. On the way {s} passed the {object} to",
    "Once {a} and {b} were inside the {place}, {s} decided to give the {object} to",
    "Then {a} and {b} had a long talk at the {place}. Later {s} sent a {object} to",
    "Before {a} and {b} left the {place}, {s} wanted to give a {object} to",
    "As soon as {a} and {b} reached the {place}, {s} offered the {object} to",
    "The old friends {a} and {b} worked at the {place}, where {s} gave the {object} to",
    "This morning {a} and {b} cleaned the {place} together, and {s} lent a {object} to",
    "Because {a} and {b} both liked the {place}, {s} went there to bring a {object} to",
    "Since {a} and {b} found a {object} at the {place}, {s} chose to give it to",
    "During the party {a} and {b} danced near the {place}, until {s} threw the {object} to",
    "At noon {a} and {b} opened the {place}, so {s} returned the {object} to",
    "Today {a} and {b} got lost close to the {place}. In the end {s} gave a {object} to",
    "In the evening {a} and {b} drove past the {place}, and {s} said a {object} belonged to",
    "One day {a} and {b} had an argument at the {place}. Afterwards {s} sent the {object} to",
)
NAMES = tuple(
    """
    Aaron Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur
    Barbara Ben Benjamin Betty Bill Bob Bobby Brian Bruce Carl Carlos Carol Catherine Charles
    Charlie Chris Christine Christopher Cindy Claire Craig Daniel David Deborah Dennis Diana
    Donald Donna Dorothy Doug Edward Elizabeth Ellen Emily Emma Eric Ethan Eva Evan Frank Fred
    Gary George Grace Greg Hannah Harry Heather Helen Henry Howard Ian Jack Jacob James Jamie Jane
    Janet Jason Jean Jeff Jennifer Jeremy Jerry Jessica Jim Joan Joe John Jonathan Joseph Joshua
    Judy Julia Julie Justin Karen Kate Katherine Keith Kelly Ken Kevin Kim Larry Laura Lauren Lee
    Leo Leonard Lewis Linda Lisa Louis Lucas Lucy Luke Maria Marie Mark Martha Martin Mary Matt
    Matthew Max Megan Melissa Michael Michelle Mike Nancy Nathan Neil Nicholas Nick Nicole Oliver
    Oscar Pamela Patricia Patrick Paul Peter Philip Rachel Ralph Ray Rebecca Richard Robert Roger
    Ron Ronald Ruth Ryan Sally Sam Samuel Sandra Sarah Scott Sean Sharon Simon Sophie Stephanie
    Stephen Steve Steven Stuart Susan Ted Thomas Tim Tom Tony Vincent Walter Wendy William
    """.split()  # noqa: SIM905
)
PLACES = tuple(
    """
    airport bakery bank beach bridge cafe castle church farm garden gym harbor hospital hotel
    house lake library market museum office park restaurant river school station store theater zoo
    """.split()  # noqa: SIM905
)
OBJECTS = tuple(
    """
    basket blanket book box camera cake coat coin drum flower guitar hammer hat kite ladder
    lamp lemon letter map mirror necklace newspaper pencil phone photo ring rope shirt ticket violin
    """.split()  # noqa: SIM905
)

# --- Colored Objects (the paper's lists, from its code, cobjs_data.py) -------------------------

SURFACES = ("table", "desk", "floor")
STARTERS = ("there is", "you see", "I see")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
COLORED_OBJECTS = tuple(
    """
    pencil notebook pen cup plate jug mug puzzle textbook leash necklace bracelet bottle ball
    envelope lighter bowl
    """.split()  # noqa: SIM905
)

# --- Control tasks ---------------------------------------------------------------------------

GREATER_THAN_TEMPLATE = "The {noun} lasted from the year {century}{start} to the year {century}"
NOUNS = tuple(
    """
    battle campaign case challenge conflict contract crisis debate dispute experiment festival
    flood friendship investigation journey marriage mission movement operation peace plan program
    project revolution rule search series strike struggle study talks tour trial trip visit voyage
    war work
    """.split()  # noqa: SIM905
)
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
CAPITAL_TEMPLATES = (
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "If you visit the capital of {country}, you are in the city of",
    "Q: What is the capital of {country}?\nA:",
    "They live in the capital of {country}, a city called",
    "The government of {country} meets in its capital city of",
    "The leader of {country} works in the city of",
    "We flew to {country} and landed in its capital,",
)
CAPITALS = {
    "Afghanistan": "Kabul",
    "Albania": "Tirana",
    "Algeria": "Algiers",
    "Argentina": "Buenos Aires",
    "Armenia": "Yerevan",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Bangladesh": "Dhaka",
    "Belarus": "Minsk",
    "Belgium": "Brussels",
    "Bulgaria": "Sofia",
    "Cambodia": "Phnom Penh",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Libya": "Tripoli",
    "Lithuania": "Vilnius",
    "Malaysia": "Kuala Lumpur",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Serbia": "Belgrade",
    "Spain": "Madrid",
    "Sudan": "Khartoum",
    "Sweden": "Stockholm",
    "Syria": "Damascus",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Zimbabwe": "Harare",
}

FILE_COLUMNS = ("clean", "corrupted", "answer", "foil")


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """A set of clean and corrupted prompts, token-aligned, with their answers and positions.

    Tokens are padded on the right: with causal attention the padding changes nothing before it.
    The fields are checked once, here; a bad set cannot be built (`UsageError`).
    """

    task: str
    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    length: Int[Tensor, " prompt"]  # tokens in each prompt, the same for both; END = length - 1
    answer: Int[Tensor, " prompt"]  # the right next token of the clean prompt
    foil: Int[Tensor, " prompt"]  # the token it is compared with
    # Named positions in the clean prompt; 2-D = a set of positions per prompt, padded with -1.
    positions: Mapping[str, Int[Tensor, " prompt"] | Int[Tensor, "prompt k"]]
    # The tokens the answer is chosen among; column 0 is the answer.
    candidates: Int[Tensor, "prompt candidate"] | None
    text: tuple[str, ...]
    corrupted_text: tuple[str, ...]
    group: tuple[str, ...]  # template or entity of each prompt, for clustered statistics
    dropped: Mapping[str, int]  # what the tokenizer filter removed, by kind

    def __post_init__(self) -> None:
        n, width = self.clean.shape
        if n == 0:
            raise UsageError(f"{self.task}: a set of prompt pairs needs at least one prompt")
        if self.corrupted.shape != self.clean.shape:
            raise UsageError(
                f"{self.task}: clean {tuple(self.clean.shape)} and corrupted "
                f"{tuple(self.corrupted.shape)} tokens differ in shape"
            )
        for name in ("length", "answer", "foil"):
            if getattr(self, name).shape != (n,):
                raise UsageError(
                    f"{self.task}: {name} must hold one number for each of {n} prompts"
                )
        for name in ("text", "corrupted_text", "group"):
            if len(getattr(self, name)) != n:
                raise UsageError(
                    f"{self.task}: {name} has {len(getattr(self, name))} entries for {n} prompts"
                )
        self._refuse((self.length < 1) | (self.length > width), f"length is not in 1..{width}")
        inside = torch.arange(width) < self.length[:, None]
        differ = self.clean != self.corrupted
        self._refuse(
            (differ & ~inside).any(1), "clean and corrupted do not have the same number of tokens"
        )
        self._refuse(~(differ & inside).any(1), "clean and corrupted are the same tokens")
        if not bool(inside.all()):
            pad = self.clean[~inside][0]
            self._refuse(((self.clean != pad) & ~inside).any(1), "padding is not one token")
            last = (self.length - 1)[:, None]
            for tokens in (self.clean, self.corrupted):
                self._refuse(
                    tokens.gather(1, last)[:, 0] == pad,
                    "clean and corrupted do not have the same number of tokens",
                )
        self._refuse(self.answer == self.foil, "answer and foil are the same token")
        if "END" not in self.positions or bool((self.positions["END"] != self.length - 1).any()):
            raise UsageError(f"{self.task}: positions must name END, the last token of each prompt")
        for name, at in self.positions.items():
            if at.shape[0] != n or at.ndim > 2:
                raise UsageError(f"{self.task}: position {name!r} must be [prompt] or [prompt, k]")
            low, at = (0, at[:, None]) if at.ndim == 1 else (-1, at)
            outside = ((at < low) | (at >= self.length[:, None])).any(1)
            self._refuse(outside, f"position {name!r} lies outside the prompt")
        if self.candidates is not None:
            wrong = self.candidates[:, 0] != self.answer
            self._refuse(wrong, "the first candidate is not the answer")

    def _refuse(self, bad: Bool[Tensor, " prompt"], reason: str) -> None:
        if bool(bad.any()):
            i = int(bad.nonzero()[0, 0])
            raise UsageError(f"{self.task}: prompt {i} ({self.text[i]!r}): {reason}")

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> "PromptPairs":
        """The prompts at `index` (slice, list of ints, index or boolean tensor), as a set."""
        rows = torch.arange(len(self))[
            index if isinstance(index, slice | Tensor) else torch.tensor(index, dtype=torch.long)
        ]
        if rows.ndim != 1:
            raise TypeError(f"index prompts with a slice, a list or a 1-D tensor, not {index!r}")
        pick = rows.tolist()
        return replace(
            self,
            clean=self.clean[rows],
            corrupted=self.corrupted[rows],
            length=self.length[rows],
            answer=self.answer[rows],
            foil=self.foil[rows],
            positions={name: at[rows] for name, at in self.positions.items()},
            candidates=None if self.candidates is None else self.candidates[rows],
            text=tuple(self.text[i] for i in pick),
            corrupted_text=tuple(self.corrupted_text[i] for i in pick),
            group=tuple(self.group[i] for i in pick),
        )

    def swapped(self) -> "PromptPairs":
        """The same prompts with the clean run for the corrupted one, and the other way round."""
        return replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            text=self.corrupted_text,
            corrupted_text=self.text,
        )

    def split(self, n: int | float = 0.5, seed: int = 0) -> tuple["PromptPairs", "PromptPairs"]:
        """Two disjoint sets, drawn at random: (selection, report).

        Args:
            n: prompts in the first set: a whole number, or a fraction of all (a float below 1).
            seed: of the draw; the same seed gives the same split.

        Raises:
            UsageError: if either set would be empty.
        """
        first = round(n * len(self)) if isinstance(n, float) else n
        if not 0 < first < len(self):
            raise UsageError(
                f"{self.task}: a split at {n} leaves nothing on one side of {len(self)} prompts"
            )
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return self[sorted(order[:first])], self[sorted(order[first:])]


# --- From text to tokens -----------------------------------------------------------------------


class _Pair(NamedTuple):
    """One pair before tokenization; `marks` are character indices into `clean`."""

    clean: str
    corrupted: str
    answer: int  # token id
    foil: int
    marks: Mapping[str, int | slice | Sequence[int]]
    group: str
    candidates: tuple[int, ...] | None = None


def _fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The template with its fields filled, and the index of each field's last character."""
    text, last = "", {}
    for literal, field, _, _ in string.Formatter().parse(template):
        text += literal
        if field is not None:
            text += words[field]
            last[field] = len(text) - 1
    return text, last


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


def _continuation(tokenizer: PreTrainedTokenizerBase, prefix: str, word: str) -> list[int]:
    """The tokens that `word` adds after `prefix`; empty if it changes how `prefix` is read."""
    before, both = _ids(tokenizer, prefix), _ids(tokenizer, prefix + word)
    return both[len(before) :] if both[: len(before)] == before else []


def _single(tokenizer: PreTrainedTokenizerBase, word: str, prefix: str = "the") -> int | None:
    """The id of `word` if it is one known token after `prefix`, else None."""
    added = _continuation(tokenizer, prefix, word)
    return added[0] if len(added) == 1 and added[0] != tokenizer.unk_token_id else None


def _singles(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> dict[str, int]:
    """The words that are one token after a space, with the token."""
    found = {word: _single(tokenizer, f" {word}") for word in words}
    return {word: token for word, token in found.items() if token is not None}


def _readable(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return tokenizer.unk_token_id is None or tokenizer.unk_token_id not in _ids(tokenizer, text)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, task: str, n_prompts: int) -> None:
    if n_prompts < 1:
        raise UsageError(f"{task}: n_prompts must be at least 1, not {n_prompts}")
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UsageError(f"{task}: needs a fast tokenizer (one that knows offsets), not {name}")


def _too_few(task: str, what: str, have: int, need: int) -> UsageError:
    return UsageError(
        f"{task}: this tokenizer has {have} {what} as single tokens, {need} are needed"
    )


def _draw(task: str, n_prompts: int, draw: Callable[[int], _Pair]) -> list[_Pair]:
    """`n_prompts` different pairs, the i-th from `draw(i)`, drawn again while it repeats one."""
    pairs: dict[str, _Pair] = {}
    for i in range(n_prompts):
        for _ in range(200):
            pair = draw(i)
            if pair.clean not in pairs:
                pairs[pair.clean] = pair
                break
        else:
            raise UsageError(
                f"{task}: only {len(pairs)} different prompts found, {n_prompts} were asked for"
            )
    return list(pairs.values())


def _assemble(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    pairs: Sequence[_Pair],
    dropped: Mapping[str, int],
    row_names: Sequence[str] | None = None,
) -> PromptPairs:
    """Tokenize the pairs and turn character marks into token positions.

    Raises:
        UsageError: naming the row, if the two prompts differ in number of tokens or one holds a
            word that the tokenizer does not know.
    """
    names = row_names or [f"prompt {i}" for i in range(len(pairs))]
    clean = tokenizer([pair.clean for pair in pairs])
    corrupted = tokenizer([pair.corrupted for pair in pairs])
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    for name, pair, a, b in zip(names, pairs, clean.input_ids, corrupted.input_ids, strict=True):
        for kind, text, ids in (("clean", pair.clean, a), ("corrupted", pair.corrupted, b)):
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                raise UsageError(f"{name}: the tokenizer does not know a word of {kind} {text!r}")
        if len(a) != len(b):
            raise UsageError(
                f"{name}: clean has {len(a)} tokens and corrupted {len(b)}; they must be equal"
            )
        if a == b:
            raise UsageError(f"{name}: clean and corrupted are the same tokens")
        if pair.answer == pair.foil:
            raise UsageError(f"{name}: answer and foil are the same token")

    length = [len(ids) for ids in clean.input_ids]
    width = max(length)

    def padded(rows: Sequence[Sequence[int]], size: int, filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (size - len(row))] for row in rows])

    def tokens_at(row: int, mark: int | slice | Sequence[int]) -> int | list[int]:
        if isinstance(mark, slice):  # every token from the first character to the last one
            first, last = (clean.char_to_token(row, c) for c in (mark.start, mark.stop - 1))
            return list(range(first, last + 1))
        if isinstance(mark, int):
            return clean.char_to_token(row, mark)
        return [clean.char_to_token(row, c) for c in mark]

    positions = {}
    for key in pairs[0].marks:
        found = [tokens_at(row, pair.marks[key]) for row, pair in enumerate(pairs)]
        if isinstance(found[0], int):
            positions[key] = torch.tensor(found)
        else:
            positions[key] = padded(found, max(map(len, found)), -1)
    positions["END"] = torch.tensor(length) - 1
    return PromptPairs(
        task=task,
        clean=padded(clean.input_ids, width, pad),
        corrupted=padded(corrupted.input_ids, width, pad),
        length=torch.tensor(length),
        answer=torch.tensor([pair.answer for pair in pairs]),
        foil=torch.tensor([pair.foil for pair in pairs]),
        positions=positions,
        candidates=(
            None
            if pairs[0].candidates is None
            else torch.tensor([pair.candidates for pair in pairs])
        ),
        text=tuple(pair.clean for pair in pairs),
        corrupted_text=tuple(pair.corrupted for pair in pairs),
        group=tuple(pair.group for pair in pairs),
        dropped=dict(dropped),
    )


# --- The tasks ---------------------------------------------------------------------------------


def ioi_pairs(tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0) -> PromptPairs:
    """Indirect object identification: "When A and B ..., B gave the ... to" is answered by " A".

    Half of the prompts name the indirect object first (ABBA), half second (BABA). Corrupted: S2
    is replaced by the IO name, so the other name becomes the right one (the corruption of Merullo
    et al. 2310.08744, not the three random names of Wang et al.). Answer: IO; foil: S. Names,
    places and objects that are not single tokens are dropped and counted.

    Positions, each [prompt]: "IO", "S1" (first S), "S1+1" (the token after it), "S2", "END".

    Raises:
        UsageError: if the tokenizer has too few of the words as single tokens.
    """
    task = "ioi"
    _check_tokenizer(tokenizer, task, n_prompts)
    names, places, objects = (_singles(tokenizer, words) for words in (NAMES, PLACES, OBJECTS))
    for what, have, need in (("names", names, 3), ("places", places, 1), ("objects", objects, 1)):
        if len(have) < need:
            raise _too_few(task, what, len(have), need)
    rng = random.Random(seed)
    first, second = list(names)[:2]
    probe = {"place": next(iter(places)), "object": next(iter(objects)), "a": first, "b": second}

    def aligned(template: str) -> bool:
        texts = [_fill(template, probe | {"s": s})[0] for s in (first, second)]
        ids = [_ids(tokenizer, text) for text in texts]
        counts = [(row.count(names[first]), row.count(names[second])) for row in ids]
        same_length = len(ids[0]) == len(ids[1])
        return _readable(tokenizer, texts[0]) and same_length and counts == [(2, 1), (1, 2)]

    templates = [(i, template) for i, template in enumerate(IOI_TEMPLATES) if aligned(template)]
    if not templates:
        raise UsageError(f"{task}: no template keeps its names as single tokens in this tokenizer")
    rng.shuffle(templates)

    def draw(i: int) -> _Pair:
        io_name, s_name = rng.sample(list(names), 2)
        number, template = templates[i // 2 % len(templates)]
        io_first = i % 2 == 0
        words = {
            "a": io_name if io_first else s_name,
            "b": s_name if io_first else io_name,
            "place": rng.choice(list(places)),
            "object": rng.choice(list(objects)),
        }
        clean, at = _fill(template, words | {"s": s_name})
        corrupted, _ = _fill(template, words | {"s": io_name})
        io_at, s1_at = (at["a"], at["b"]) if io_first else (at["b"], at["a"])
        marks = {"IO": io_at, "S1": s1_at, "S1+1": s1_at, "S2": at["s"]}
        group = f"ioi-{number:02d}"
        return _Pair(clean, corrupted, names[io_name], names[s_name], marks, group)

    dropped = {
        "names": len(NAMES) - len(names),
        "places": len(PLACES) - len(places),
        "objects": len(OBJECTS) - len(objects),
        "templates": len(IOI_TEMPLATES) - len(templates),
    }
    pairs = _assemble(tokenizer, task, _draw(task, n_prompts, draw), dropped)
    after_s1 = {"S1+1": pairs.positions["S1"] + 1}
    return replace(pairs, positions={**pairs.positions, **after_s1})


_QUESTION = re.compile(
    r"Q: On the (?P<surface>[^,\n]+), (?P<list>[^.?\n]+)\. "
    r"(?P<question>What color is the (?P<query>[^?\n]+)\?)\nA:(?P<answer>[^\n]*)(?:\n|$)"
)
_ITEM = re.compile(r"\ban? (?P<color>[^\s,]+) (?P<object>[^,]+?)(?=, |,? and an? |$)")


class _Question(NamedTuple):
    """One question of a Colored Objects prompt and where its parts are (character indices)."""

    group: str  # surface and starter
    colors: list[tuple[str, int]]  # each colour with the index of its last character
    objects: list[tuple[str, int]]
    queried: int  # which of the objects is asked about
    query: int  # last character of the object in "What color is the ...?"
    question: slice  # "What color is the ...?"
    answer: str


def _ask(surface: str, starter: str, items: Sequence[tuple[str, str]], queried: int) -> str:
    """The question about `items` (colour, object) that asks for the colour of one of them."""
    listed = [f"{'an' if color[0] in 'aeiou' else 'a'} {color} {thing}" for color, thing in items]
    comma = "," if len(items) > 2 else ""
    things = ", ".join(listed[:-1]) + f"{comma} and {listed[-1]}"
    return f"Q: On the {surface}, {starter} {things}. What color is the {items[queried][1]}?\nA:"


def _questions(prompt: str) -> list[_Question]:
    """The questions of a Colored Objects prompt.

    Raises:
        ValueError: with the reason, if the prompt is not in the format.
    """
    found, end = [], 0
    for match in _QUESTION.finditer(prompt):
        if match.start() != end:
            break
        end, start = match.end(), match.start("list")
        items = list(_ITEM.finditer(match["list"]))
        objects = [item["object"] for item in items]
        if len(items) < 2 or len(set(objects)) < len(objects):
            raise ValueError("a question lists fewer than two objects, or one object twice")
        if match["query"] not in objects:
            raise ValueError(f"{match['query']!r} is asked about and not listed")
        question = _Question(
            group=f"{match['surface']}/{match['list'][: items[0].start()].strip()}",
            colors=[(item["color"], start + item.end("color") - 1) for item in items],
            objects=[(item["object"], start + item.end("object") - 1) for item in items],
            queried=objects.index(match["query"]),
            query=match.end("query") - 1,
            question=slice(match.start("question"), match.end("question")),
            answer=match["answer"].strip(),
        )
        found.append(question)
    if not found or end != len(prompt) or prompt.endswith("\n") or found[-1].answer:
        raise ValueError(
            "not in the form 'Q: On the S, ... a C O, a C O, and a C O. What color is the O?\\nA:'"
        )
    return found


def _colored_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, other: str) -> _Pair:
    """The pair whose corrupted prompt asks the last question about the object `other`.

    Raises:
        ValueError: with the reason, if the prompt is not in the format.
    """
    *shots, test = _questions(prompt)
    names = [word for word, _ in test.objects]
    colors = [word for word, _ in test.colors]
    if len(set(colors)) < len(colors):
        raise ValueError("the last question has one colour twice")
    # The queried object's column comes first, the others in the order of the list.
    order = [test.queried, *(i for i in range(len(colors)) if i != test.queried)]
    tokens = {}
    for color in colors:
        token = _single(tokenizer, f" {color.title()}", "A:")
        if token is None or _single(tokenizer, f" {color}") is None:
            raise ValueError(f"{color!r} or {color.title()!r} is not one token in this tokenizer")
        tokens[color] = token
    start = test.query - len(names[test.queried]) + 1
    return _Pair(
        clean=prompt,
        corrupted=prompt[:start] + other + prompt[test.query + 1 :],
        answer=tokens[colors[test.queried]],
        foil=tokens[colors[names.index(other)]],
        marks={
            "colors": [test.colors[i][1] for i in order],
            "wrong_colors": [test.colors[i][1] for i in order[1:]],
            "shot_colors": [at for shot in shots for _, at in shot.colors],
            "objects": [test.objects[i][1] for i in order],
            "queried": test.objects[test.queried][1],
            "query": test.query,
            "question": test.question,
        },
        group=test.group,
        candidates=tuple(tokens[colors[i]] for i in order),
    )


def colored_objects_pairs(
    tokenizer: PreTrainedTokenizerBase,
    n_prompts: int,
    seed: int = 0,
    n_objects: int = 3,
    n_shots: int = 1,
) -> PromptPairs:
    """Colored Objects in the format of Merullo et al. (2310.08744, Sec. 4; code cobjs_data.py).

    "Q: On the table, there is a red pen, a blue cup, and a green mug. What color is the cup?\\nA:
    Blue\\nQ: ...\\nA:". The test question shares no colour and no object with the shots (between
    shots only the objects are kept apart: there are eight colours). Corrupted: another object of
    the test question is asked about. Answer and foil: the two colours, title-case with a leading
    space. With two objects the list is "a C O and a C O". Colours need both spellings as single
    tokens, objects one; the others are dropped and counted.

    Positions: "colors" [prompt, n_objects] (test question; column 0 = the right colour, then the
    order of the list), "wrong_colors" [prompt, n_objects - 1], "shot_colors" [prompt,
    n_objects * n_shots], "objects" [prompt, n_objects] (columns as in "colors"), "queried"
    [prompt] (the object asked about, in the list), "query" [prompt] (the object in "What color is
    the ...?"), "question" [prompt, k] (every token of that sentence), "END" [prompt].
    Candidates [prompt, n_objects]: the colours as answers, columns as in "colors".

    Raises:
        UsageError: if n_objects or n_shots is out of range or too few words are single tokens.
    """
    task = "colored_objects"
    _check_tokenizer(tokenizer, task, n_prompts)
    if n_objects not in (2, 3):
        raise UsageError(f"{task}: n_objects must be 2 or 3, not {n_objects}")
    if n_shots not in (1, 2, 3):
        raise UsageError(f"{task}: n_shots must be 1, 2 or 3, not {n_shots}")
    title = _singles(tokenizer, (color.title() for color in COLORS))
    colors = [color for color in _singles(tokenizer, COLORS) if color.title() in title]
    objects = list(_singles(tokenizer, COLORED_OBJECTS))
    for what, have, need in (
        ("colours", colors, 2 * n_objects),
        ("objects", objects, n_objects * (n_shots + 1)),
    ):
        if len(have) < need:
            raise _too_few(task, what, len(have), need)
    frames = [
        (surface, starter)
        for surface in SURFACES
        for starter in STARTERS
        if _readable(tokenizer, _ask(surface, starter, list(zip(colors, objects, strict=False)), 0))
    ]
    if not frames:
        raise UsageError(f"{task}: the tokenizer does not know the words of the format")
    rng = random.Random(seed)

    def draw(i: int) -> _Pair:
        things = rng.sample(objects, n_objects * (n_shots + 1))
        test_colors = rng.sample(colors, n_objects)
        others = [color for color in colors if color not in test_colors]
        prompt = ""
        for shot in range(n_shots):
            shown = things[shot * n_objects : (shot + 1) * n_objects]
            items = list(zip(rng.sample(others, n_objects), shown, strict=True))
            asked = rng.randrange(n_objects)
            prompt += f"{_ask(*rng.choice(frames), items, asked)} {items[asked][0].title()}\n"
        asked, tested = i % n_objects, things[-n_objects:]
        frame = frames[i // n_objects % len(frames)]
        prompt += _ask(*frame, list(zip(test_colors, tested, strict=True)), asked)
        other = rng.choice([thing for thing in tested if thing != tested[asked]])
        return _colored_pair(tokenizer, prompt, other)

    dropped = {
        "colors": len(COLORS) - len(colors),
        "objects": len(COLORED_OBJECTS) - len(objects),
        "templates": len(SURFACES) * len(STARTERS) - len(frames),
    }
    return _assemble(tokenizer, task, _draw(task, n_prompts, draw), dropped)


def greater_than_pairs(
    tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0
) -> PromptPairs:
    """Greater-Than as pairs (Hanna et al. 2305.00586): "The war lasted from the year 1732 to the
    year 17" must go on with a later year.

    Answer: a continuation later than the start year; foil: an earlier one. Tokenizers with single
    digits are asked for the tens digit only: after 1732 the answer is one of 4..9 and the foil one
    of 0..2 (a 3 could be either). Tokenizers that read a year as two pairs of digits are asked for
    a pair (answer 33..99, foil 02..31, as in the paper). Corrupted: the start year ends in 01, so
    that both continuations are possible and the prompt no longer tells them apart; the logit
    difference of the corrupted prompt is then the model's habit, not the opposite answer.
    Answers are larger than foils, so a model that likes large digits is right without reading the
    start year: compare clean with corrupted before crediting it.

    Positions: "YY" [prompt, 2 or 1] (the last two digits of the start year), "END" [prompt].

    Raises:
        UsageError: if the tokenizer reads years in any other way.
    """
    task = "greater_than"
    _check_tokenizer(tokenizer, task, n_prompts)
    nouns = list(_singles(tokenizer, NOUNS))
    if not nouns:
        raise _too_few(task, "nouns", 0, 1)

    def prompt(noun: str, century: str, start: str) -> tuple[str, dict[str, int]]:
        words = {"noun": noun, "century": century, "start": start}
        return _fill(GREATER_THAN_TEMPLATE, words)

    two_digits = [f"{number:02d}" for number in range(100)]
    probe, _ = prompt(nouns[0], "17", "32")
    added = [len(_continuation(tokenizer, probe, digits)) for digits in two_digits]
    if added.count(1) > 50:
        size, ways, starts = 1, two_digits, two_digits[3:99]
    elif set(added) == {2} and all(_single(tokenizer, d, probe) for d in string.digits):
        size, ways, starts = 2, list(string.digits), two_digits[10:90]
    else:
        raise UsageError(
            f"{task}: needs a tokenizer that splits a year into digits or into two pairs of "
            f"digits; this one reads ' 1745' as {tokenizer.tokenize(' 1745')}"
        )
    token = {digits: _single(tokenizer, digits, probe) for digits in ways}

    def aligned(century: str, year: str) -> bool:
        """Does `year`, two digits, follow `century` in tokens of its own?"""
        tail = [token[year]] if size == 1 else [token[digit] for digit in year]
        text, _ = prompt(nouns[0], century, "01")
        return _continuation(tokenizer, text, year) == tail

    # Per century: the two-digit years that are tokens of their own. 01 is the corrupted one.
    known = {c: [year for year in two_digits if aligned(c, year)] for c in CENTURIES}
    years = [
        (century, start)
        for century in CENTURIES
        if {"01", "02", "99"} <= set(known[century])
        for start in starts
        if start in known[century]
    ]
    if not years:
        raise UsageError(f"{task}: no year splits into its century and its last two digits")
    rng = random.Random(seed)

    def draw(i: int) -> _Pair:
        noun = nouns[i % len(nouns)]
        century, start = rng.choice(years)
        clean, at = prompt(noun, century, start)
        corrupted, _ = prompt(noun, century, "01")
        ends = ways if size == 2 else [year for year in known[century] if year > "01"]
        split = start[:1] if size == 2 else start
        answer = rng.choice([end for end in ends if end > split])
        foil = rng.choice([end for end in ends if end < split])
        marks = {"YY": [at["start"]] if size == 1 else [at["start"] - 1, at["start"]]}
        return _Pair(clean, corrupted, token[answer], token[foil], marks, f"greater-than-{noun}")

    dropped = {
        "nouns": len(NOUNS) - len(nouns),
        "years": len(CENTURIES) * len(starts) - len(years),
    }
    return _assemble(tokenizer, task, _draw(task, n_prompts, draw), dropped)


def capital_pairs(tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0) -> PromptPairs:
    """World capitals: "The capital of France is the city of" is answered by " Paris".

    The template of Merullo et al. (2310.08744, App. H) is not public; these are our own.
    Corrupted: another country with as many tokens. Answer and foil: the first token of the two
    capitals. A country is dropped if its capital's first token is that of an earlier one, or if no
    other country has as many tokens.

    Positions, each [prompt]: "country" (its last token), "END".

    Raises:
        UsageError: if fewer than n_prompts prompts can be made.
    """
    task = "capitals"
    _check_tokenizer(tokenizer, task, n_prompts)
    first: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for country, capital in CAPITALS.items():
        added = _continuation(tokenizer, "the city of", f" {capital}")
        size = len(_continuation(tokenizer, "the capital of", f" {country}"))
        known = tokenizer.unk_token_id not in added and _readable(tokenizer, f" of {country}")
        if added and size and known and added[0] not in first.values():
            first[country], sizes[country] = added[0], size
    counts = Counter(sizes.values())
    countries = [country for country in first if counts[sizes[country]] > 1]
    probe = countries[0] if countries else "France"
    templates = [t for t in CAPITAL_TEMPLATES if _readable(tokenizer, t.format(country=probe))]
    everything = [(template, country) for country in countries for template in templates]
    if n_prompts > len(everything):
        raise UsageError(
            f"{task}: {len(countries)} countries in {len(templates)} templates give "
            f"{len(everything)} prompts in this tokenizer, {n_prompts} were asked for"
        )
    rng = random.Random(seed)
    rng.shuffle(everything)

    def draw(i: int) -> _Pair:
        template, country = everything[i]
        size = sizes[country]
        other = rng.choice([c for c in countries if sizes[c] == size and c != country])
        clean, at = _fill(template, {"country": country})
        corrupted, _ = _fill(template, {"country": other})
        group = f"capitals-{CAPITAL_TEMPLATES.index(template)}"
        return _Pair(clean, corrupted, first[country], first[other], at, group)

    dropped = {
        "countries": len(CAPITALS) - len(countries),
        "templates": len(CAPITAL_TEMPLATES) - len(templates),
    }
    return _assemble(tokenizer, task, _draw(task, n_prompts, draw), dropped)


# --- A reader's own data -------------------------------------------------------------------------


def _read_text(path: str | Path) -> str:
    """The file as UTF-8 text, with or without a byte order mark."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if not text.strip():
        raise UsageError(f"{path} is empty")
    return text


def _parse_json(text: str, where: str) -> object:
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # no tokenizer reads half a character
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    return content


def rows_of_file(path: Path, columns: Sequence[str], more: Sequence[str] = ()) -> dict[str, object]:
    """The rows of a reader's JSON, JSONL or CSV file by name: "FILE row 3", counted from 1.

    A CSV has exactly `columns`, and perhaps some of `more`; rows of the others are not looked into.

    Raises:
        UsageError: a file that is missing, empty, not UTF-8, of an unknown kind, or broken.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".csv"):
        raise UsageError(f"{path}: unknown kind of file; use .json, .jsonl or .csv")
    text = _read_text(path)
    if suffix == ".json":
        rows = _parse_json(text, str(path))
        if not isinstance(rows, list):
            raise UsageError(f"{path}: must hold a list of rows, not a {type(rows).__name__}")
    elif suffix == ".jsonl":
        lines = [line for line in text.split("\n") if line.strip()]
        rows = [_parse_json(line, f"{path} row {i}") for i, line in enumerate(lines, 1)]
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise UsageError(f"{path} line {reader.line_num}: not CSV ({error})") from None
        header = reader.fieldnames or []
        if sorted(set(header) - set(more)) != sorted(columns) or len(set(header)) < len(header):
            raise UsageError(
                f"{path}: the columns must be {', '.join(columns)}, not {', '.join(header)}"
            )
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return {f"{path} row {i}": row for i, row in enumerate(rows, 1)}


def _answer_token(tokenizer: PreTrainedTokenizerBase, where: str, key: str, row: dict) -> int:
    prompt, word = row["clean"], row[key]
    letters = string.ascii_letters
    if prompt[-1] in letters and word[0] in letters:
        raise UsageError(
            f"{where}: {key} {word!r} would be joined to the last word of clean; "
            f"begin it with a space: {' ' + word!r}"
        )
    token = _single(tokenizer, word, prompt)
    if token is None:
        pieces = tokenizer.convert_ids_to_tokens(_continuation(tokenizer, prompt, word))
        raise UsageError(
            f"{where}: {key} {word!r} must be one known token after clean; "
            f"this tokenizer reads {pieces or 'the two together in another way'}"
        )
    return token


def pairs_from_file(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> PromptPairs:
    """A reader's own prompts: JSON (list of objects), JSONL or CSV, UTF-8.

    Columns, no others: clean, corrupted (prompts with equally many tokens), answer, foil (each one
    token as it follows the clean prompt, so usually with its leading space). "END" is the only
    position; each prompt is a group of its own. Rows are counted from 1, without a CSV's header
    and blank lines.

    Raises:
        UsageError: naming the row and the reason; also for a file that is missing, empty, not
            UTF-8, of an unknown kind or with other columns.
    """
    path = Path(path)
    _check_tokenizer(tokenizer, str(path), 1)
    rows = rows_of_file(path, FILE_COLUMNS)
    pairs: list[_Pair] = []
    seen: dict[tuple[str, ...], str] = {}
    for where, row in rows.items():
        if not isinstance(row, dict) or set(row) != set(FILE_COLUMNS):
            got = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"{where}: must have {', '.join(FILE_COLUMNS)} and no more, not {got}")
        for key in FILE_COLUMNS:
            if not isinstance(row[key], str) or not row[key].strip():
                raise UsageError(f"{where}: {key} must be text, not {row[key]!r}")
        values = tuple(row[key] for key in FILE_COLUMNS)
        if values in seen:
            raise UsageError(f"{where}: repeats {seen[values].removeprefix(f'{path} ')}")
        seen[values] = where
        answer, foil = (_answer_token(tokenizer, where, key, row) for key in ("answer", "foil"))
        group = where.removeprefix(f"{path} ")
        pairs.append(_Pair(row["clean"], row["corrupted"], answer, foil, {}, group))
    return _assemble(tokenizer, path.stem, pairs, {}, list(rows))


def colored_objects_from_file(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, seed: int = 0
) -> PromptPairs:
    """Colored Objects prompts in the format of the paper authors' data files (cobjs_data_42.json).

    A JSON list of [prompt, answer]; the prompt is one or more questions of the form that
    `colored_objects_pairs` writes, the answer the colour. Corrupted: another object of the last
    question, of as many tokens, is asked about (drawn by `seed`). Positions and candidates as in
    `colored_objects_pairs`; an object of several tokens is marked at its last one.

    Raises:
        UsageError: naming the row and the reason; also for a missing, empty or non-JSON file.
    """
    path = Path(path)
    _check_tokenizer(tokenizer, str(path), 1)
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: unknown kind of file; use .json")
    rows = rows_of_file(path, FILE_COLUMNS)
    rng = random.Random(seed)
    pairs: list[_Pair] = []
    seen: dict[str, str] = {}
    for where, row in rows.items():
        if not isinstance(row, list) or [type(part) for part in row] != [str, str]:
            raise UsageError(f"{where}: must be a list of two texts, [prompt, answer]")
        prompt, answer = row
        if prompt in seen:
            raise UsageError(f"{where}: repeats {seen[prompt].removeprefix(f'{path} ')}")
        seen[prompt] = where
        try:
            test = _questions(prompt)[-1]
            things = [word for word, _ in test.objects]
            right = test.colors[test.queried][0]
            if answer.strip().lower() != right.lower():
                raise ValueError(f"the answer is {answer!r} and the prompt says {right!r}")
            size = {t: len(_continuation(tokenizer, "the", f" {t}")) for t in things}
            others = [
                t
                for i, t in enumerate(things)
                if i != test.queried and size[t] == size[things[test.queried]]
            ]
            if not others:
                raise ValueError(
                    f"no other object has as many tokens as {things[test.queried]!r} "
                    "in this tokenizer"
                )
            pair = _colored_pair(tokenizer, prompt, rng.choice(others))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if pairs and len(pair.candidates) != len(pairs[0].candidates):
            raise UsageError(
                f"{where}: the last question has {len(pair.candidates)} objects, "
                f"row 1 has {len(pairs[0].candidates)}"
            )
        pairs.append(pair)
    return _assemble(tokenizer, path.stem, pairs, {}, list(rows))


# --- A tokenizer that knows these words only ------------------------------------------------------

_PIECE = r" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]"


def word_tokenizer(more: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of the tasks above is one token, with its leading space.

    So is every word of the texts `more`, if there are any.
    Digits, punctuation and the newline are tokens of their own; any other text is <unk>. It adds
    no BOS token. `decode(ids) == text` for every prompt of the tasks.
    """
    fields = (*NAMES, *PLACES, *OBJECTS, *COLORED_OBJECTS, *COLORS, *NOUNS, *SURFACES, *STARTERS)
    texts = [f" {word}" for words in (*CAPITALS.items(), fields) for word in words]
    texts += more
    texts += [f" {color.title()}" for color in COLORS]
    texts += [_ask("table", "there is", [("orange", "pen"), ("red", "cup"), ("red", "mug")], 0)]
    for template in (*IOI_TEMPLATES, *CAPITAL_TEMPLATES, GREATER_THAN_TEMPLATE):
        # A field is preceded by a space unless it is digits; the space belongs to its word.
        texts += re.split(r" ?{\w+}", template)
    pieces = {piece for text in texts for piece in re.findall(_PIECE, text)}
    words = sorted(pieces | {" ", *string.digits})
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
