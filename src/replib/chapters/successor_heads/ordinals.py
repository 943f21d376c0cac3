"""Ordinal classes (numbers, days, letters, ...) as tokens, and prompts that count through them.

The classes are those of Gould et al. (arXiv 2312.09230, Sec. 2), in the lists of the independent
implementation of their score, as the paper's own are not published. A class keeps the words that
a tokenizer writes as one token with its leading space; digits, which some tokenizers never join
to a space, may also stand without it.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.metrics import rng
from replib.prompts.pairs import PromptPairs

ROMAN = "Roman numerals"  # kept apart: nothing is ever fitted or chosen on it


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: Mapping[str, tuple[str, ...]] = {
    "numbers": tuple(map(str, range(1, 201))),
    "number words": _words(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty"
    ),
    "ordinal words": _words("first second third fourth fifth sixth seventh eighth ninth tenth"),
    "days": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": _words(
        "January February March April May June July August September October November December"
    ),
    "day prefixes": _words("Mon Tue Wed Thu Fri Sat Sun"),
    "month prefixes": _words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"),
    "letters": tuple(string.ascii_uppercase),
    ROMAN: _words("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"),
}
WRAPS = ("days", "months")  # after Sunday comes Monday
MIN_PAIRS = 3  # a class with fewer successions is left out
# Things for numbered lists.
ITEMS = _words(
    """
    apple bread butter cheese coffee milk rice salt sugar tea water wine book box chair clock door
    key lamp map paper pen ring table ball boat car drum flag horse bird cat dog fish tree rose
    """
)


@dataclass(frozen=True, eq=False)
class OrdinalClass:
    """The words of one class that are single tokens, in their order."""

    name: str
    words: tuple[str, ...]
    tokens: Int[Tensor, " item"]
    index: Int[Tensor, " item"]  # place in the whole class, from 1: `index % 10` is its residue
    pairs: Int[Tensor, "pair 2"]  # (item, its successor), positions in `tokens`

    def __len__(self) -> int:
        return len(self.words)


def token_alone(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of `text` if, with nothing before it, it is exactly one known token, else None."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def n_integers(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of 0 to 199 are one token with their leading space."""
    return sum(token_alone(tokenizer, f" {i}") is not None for i in range(200))


def ordinal_classes(tokenizer: PreTrainedTokenizerBase) -> dict[str, OrdinalClass]:
    """The classes that this tokenizer can write, Roman numerals last. Without at least `MIN_PAIRS`
    successions a class is left out. Where a word falls out, the pair before and the pair after it
    go too. Raises UsageError if no class is left."""
    classes = {}
    for name, words in WORDS.items():
        found = {}
        for place, word in enumerate(words, 1):
            token = token_alone(tokenizer, f" {word}")
            if token is None and name == "numbers":
                token = token_alone(tokenizer, word)
            if token is not None:
                found[place] = (word, token)
        at = {place: item for item, place in enumerate(found)}
        pairs = [(at[p], at[p + 1]) for p in found if p + 1 in found]
        if name in WRAPS and {1, len(words)} <= found.keys():
            pairs.append((at[len(words)], at[1]))
        if len(pairs) >= MIN_PAIRS:
            classes[name] = OrdinalClass(
                name,
                tuple(word for word, _ in found.values()),
                torch.tensor([token for _, token in found.values()]),
                torch.tensor(list(found)),
                torch.tensor(pairs),
            )
    if not classes.keys() - {ROMAN}:
        raise UsageError("ordinal classes: this tokenizer writes none of them in single tokens")
    return classes


@dataclass(frozen=True, eq=False)
class AllTokens:
    """The tokens of some classes side by side, one class after the other."""

    names: tuple[str, ...]  # of the classes
    tokens: Int[Tensor, " token"]
    index: Int[Tensor, " token"]  # place in its class, from 1: `index % 10` is its residue
    domain: Int[Tensor, " token"]  # its class: names[domain]
    pairs: Int[Tensor, "pair 2"]  # (token, its successor), positions in `tokens`

    def of(self, name: str) -> Bool[Tensor, " token"]:
        """Which tokens are of that class: none if it is not among the classes."""
        wanted = torch.tensor([name == mine for mine in self.names])
        return wanted[self.domain]

    def span(self, name: str) -> slice:
        """Where the tokens of a class stand."""
        at = self.of(name).nonzero()[:, 0]
        return slice(int(at[0]), int(at[-1]) + 1)


def all_tokens(classes: Mapping[str, OrdinalClass], largest: int | None = None) -> AllTokens:
    """The tokens, places and successions of several classes in one row each; with `largest`, only
    places up to it."""
    sizes = torch.tensor([len(c) for c in classes.values()])
    start = sizes.cumsum(0) - sizes
    index = torch.cat([c.index for c in classes.values()])
    pairs = torch.cat([c.pairs + at for c, at in zip(classes.values(), start, strict=True)])
    kept = torch.ones_like(index, dtype=torch.bool) if largest is None else index <= largest
    new = kept.cumsum(0) - 1
    return AllTokens(
        names=tuple(classes),
        tokens=torch.cat([c.tokens for c in classes.values()])[kept],
        index=index[kept],
        domain=torch.arange(len(classes)).repeat_interleave(sizes)[kept],
        pairs=new[pairs[kept[pairs].all(-1)]],
    )


def overview(
    tokenizer: PreTrainedTokenizerBase, classes: Mapping[str, OrdinalClass]
) -> pd.DataFrame:
    """A row for each class: words kept, successions, the first three tokens."""
    rows = {}
    for name, c in classes.items():
        first = ", ".join(repr(tokenizer.decode([t])) for t in c.tokens[:3].tolist())
        rows[name] = [f"{len(c)} of {len(WORDS[name])}", len(c.pairs), first]
    columns = ["words kept", "successions", "the first three"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def counts(
    tokenizer: PreTrainedTokenizerBase, classes: Mapping[str, OrdinalClass]
) -> dict[str, int]:
    """How much of the classes this tokenizer can write, and how many integers."""
    return {
        "n_classes": len(classes),
        "integers": n_integers(tokenizer),
        "n_tokens": sum(map(len, classes.values())),
        "n_pairs": sum(len(c.pairs) for c in classes.values()),
    }


def counting(numbers: OrdinalClass) -> Int[Tensor, " n"]:
    """The tokens of 1, 2, ... n, without a gap, n the largest multiple of ten that there is."""
    n = int((torch.arange(len(numbers)) + 1 == numbers.index).sum())
    return numbers.tokens[: n // 10 * 10]


def _pairs(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    choices: list[int],
    rows: list[tuple[list[int], list[int], int, int, str]],
) -> PromptPairs:
    """Rows are (clean, corrupted, answer, foil, group), the prompts as tokens without those that
    the tokenizer puts in front of every text. Candidates: the answer, then the other choices."""
    clean, corrupted, answer, foil, group = zip(*rows, strict=True)
    start = tokenizer("").input_ids
    clean, corrupted = ([[*start, *row] for row in some] for some in (clean, corrupted))
    length = torch.full((len(rows),), len(clean[0]))
    return PromptPairs(
        task=task,
        clean=torch.tensor(clean),
        corrupted=torch.tensor(corrupted),
        length=length,
        answer=torch.tensor(answer),
        foil=torch.tensor(foil),
        positions={"END": length - 1},
        candidates=torch.tensor([[a, *(t for t in choices if t != a)] for a in answer]),
        text=tuple(map(tokenizer.decode, clean)),
        corrupted_text=tuple(map(tokenizer.decode, corrupted)),
        group=group,
        dropped={},
    )


def list_pairs(
    tokenizer: PreTrainedTokenizerBase, ordinal: OrdinalClass, generator: np.random.Generator
) -> PromptPairs | None:
    """ " Monday, Tuesday, Wednesday," with answer " Thursday"; candidates are the whole class.

    Corrupted: the same words in another order that ends in another word, so that a head which
    favours the whole class does there what it does here, and a head which continues the list does
    not. The foil is the successor of that last word, or the last word itself where it has none.
    At most 12 lists; None if the class has none, or the tokenizer no comma.
    """
    after = dict(ordinal.pairs.tolist())
    comma = token_alone(tokenizer, ",")
    lists = []
    for first in after:
        items = [first]
        while len(items) < 4 and items[-1] in after:
            items.append(after[items[-1]])
        if len(items) == 4:
            lists.append(items)
    if comma is None or not lists:
        return None
    if len(lists) > 12:
        lists = [lists[i] for i in np.linspace(0, len(lists) - 1, 12).astype(int)]
    tokens, rows = ordinal.tokens.tolist(), []
    for *items, answer in lists:
        order = list(items)
        while order[-1] == items[-1] or order == sorted(items):
            order = [items[i] for i in generator.permutation(3)]
        foil = after.get(order[-1], order[-1])
        foil = order[-1] if foil == answer else foil
        clean, corrupted = (
            [t for item in some for t in (tokens[item], comma)] for some in (items, order)
        )
        rows.append((clean, corrupted, tokens[answer], tokens[foil], ordinal.words[answer]))
    return _pairs(tokenizer, f"lists of {ordinal.name}", tokens, rows)


def every_list(
    tokenizer: PreTrainedTokenizerBase, classes: Mapping[str, OrdinalClass], seed: int
) -> dict[str, PromptPairs]:
    """`list_pairs` of each class that has some."""
    lists = {}
    for name, c in classes.items():
        pairs = list_pairs(tokenizer, c, rng(seed, "lists", name))
        if pairs is not None:
            lists[name] = pairs
    return lists


def side_by_side(
    lists: Mapping[str, PromptPairs],
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"], list[str]]:
    """The clean prompts of all classes, their answers, and a group for each answer."""
    clean = torch.cat([pairs.clean for pairs in lists.values()])
    answer = torch.cat([pairs.answer for pairs in lists.values()])
    return clean, answer, [f"{name} {g}" for name, pairs in lists.items() for g in pairs.group]


def numbered_pairs(
    tokenizer: PreTrainedTokenizerBase, n_prompts: int, generator: np.random.Generator
) -> PromptPairs | None:
    """ "2. milk\\n3. rice\\n4. tea\\n" with answer "5" (Gould et al., App. J, with our own words).

    Numbers stay below 10: one token in every tokenizer at hand. Corrupted: the three numbers in
    another order. None if the tokenizer cannot write such a list in single tokens.
    """
    digits = [token_alone(tokenizer, str(i)) for i in range(10)]
    dot, end = token_alone(tokenizer, "."), token_alone(tokenizer, "\n")
    items = [t for word in ITEMS if (t := token_alone(tokenizer, f" {word}")) is not None]
    if None in (*digits, dot, end) or len(items) < 3:
        return None
    rows = []
    for i in range(n_prompts):
        first = 1 + i % 6
        things = generator.choice(items, 3, replace=False).tolist()
        orders = ((first, first + 1, first + 2), (first + 1, first + 2, first))
        clean, corrupted = (
            [t for n, item in zip(order, things, strict=True) for t in (digits[n], dot, item, end)]
            for order in orders
        )
        rows.append((clean, corrupted, digits[first + 3], digits[first + 1], f"from {first}"))
    return _pairs(tokenizer, "numbered lists", digits[1:], rows)
