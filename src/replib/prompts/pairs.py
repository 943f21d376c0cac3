"""Prompts in pairs: a clean one, a corrupted one of equal length, and the tokens that matter.

A task is a function of a Hugging Face tokenizer that returns `PromptPairs`; the other modules of
this package hold one each. Whether a prompt starts with a BOS token is the tokenizer's own habit.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.tokens import check_ids


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """A set of clean and corrupted prompts, token-aligned, with their answers and positions. Tokens
    are padded on the right: with causal attention the padding changes nothing before it. The fields
    are checked once, here; a bad set cannot be built (`UsageError`)."""

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
                problem = f"{name} must hold one number for each of {n} prompts"
                raise UsageError(f"{self.task}: {problem}")
        for name in ("text", "corrupted_text", "group"):
            if (size := len(getattr(self, name))) != n:
                raise UsageError(f"{self.task}: {name} has {size} entries for {n} prompts")
        self._refuse((self.length < 1) | (self.length > width), f"length is not in 1..{width}")
        inside = torch.arange(width) < self.length[:, None]
        differ = self.clean != self.corrupted
        unequal = "clean and corrupted do not have the same number of tokens"
        self._refuse((differ & ~inside).any(1), unequal)
        self._refuse(~(differ & inside).any(1), "clean and corrupted are the same tokens")
        if not bool(inside.all()):
            pad = self.clean[~inside][0]
            self._refuse(((self.clean != pad) & ~inside).any(1), "padding is not one token")
            for tokens in (self.clean, self.corrupted):
                self._refuse(tokens.gather(1, self.length[:, None] - 1)[:, 0] == pad, unequal)
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
        where = index if isinstance(index, slice | Tensor) else torch.tensor(index).long()
        rows = torch.arange(len(self))[where]
        if rows.ndim != 1:
            raise TypeError(f"index prompts with a slice, a list or a 1-D tensor, not {index!r}")
        picked = {"positions": {name: at[rows] for name, at in self.positions.items()}}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                picked[name] = value[rows]
            elif isinstance(value, tuple):
                picked[name] = tuple(value[i] for i in rows.tolist())
        return replace(self, **picked)

    def swapped(self) -> "PromptPairs":
        """The same prompts with the clean run for the corrupted one, and the other way round."""
        tokens = {"clean": self.corrupted, "corrupted": self.clean}
        return replace(self, **tokens, text=self.corrupted_text, corrupted_text=self.text)


def of_one_length(pairs: PromptPairs, n: int) -> PromptPairs:
    """The first `n` of the pairs that have the commonest length (all of them if there are fewer),
    without padding: END is the last position of every row."""
    width = int(pairs.length.mode().values)
    some = pairs[pairs.length == width][:n]
    return replace(some, clean=some.clean[:, :width], corrupted=some.corrupted[:, :width])


class Pair(NamedTuple):
    """One pair before tokenization; `marks` are character indices into `clean`."""

    clean: str
    corrupted: str
    answer: int  # token id
    foil: int
    marks: Mapping[str, int | slice | Sequence[int]]
    group: str
    candidates: tuple[int, ...] | None = None


def fill_template(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The template with its fields filled, and the index of each field's last character."""
    text, last = "", {}
    for literal, field, _, _ in string.Formatter().parse(template):
        text += literal
        if field is not None:
            text += words[field]
            last[field] = len(text) - 1
    return text, last


def draw_pairs(task: str, n_prompts: int, draw: Callable[[int], Pair]) -> list[Pair]:
    """`n_prompts` different pairs, the i-th from `draw(i)`, drawn again while it repeats one."""
    pairs: dict[str, Pair] = {}
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


def assemble(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    pairs: Sequence[Pair],
    dropped: Mapping[str, int],
    row_names: Sequence[str] | None = None,
) -> PromptPairs:
    """Tokenize the pairs and turn character marks into token positions. UsageError, naming the row,
    if the two prompts differ in number of tokens, or one holds a word that the tokenizer does not
    know or is nothing that its model can read (`check_ids`)."""
    names = row_names or [f"prompt {i}" for i in range(len(pairs))]
    texts, corrupted_texts, answers, foils, _, groups, candidates = zip(*pairs, strict=True)
    clean, corrupted = tokenizer(list(texts)), tokenizer(list(corrupted_texts))
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    for name, pair, a, b in zip(names, pairs, clean.input_ids, corrupted.input_ids, strict=True):
        for kind, text, ids in (("clean", pair.clean, a), ("corrupted", pair.corrupted, b)):
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                raise UsageError(f"{name}: the tokenizer does not know a word of {kind} {text!r}")
            check_ids(tokenizer, f"{name}: {kind}", ids)
        if len(a) != len(b):
            sizes = f"clean has {len(a)} tokens and corrupted {len(b)}"
            raise UsageError(f"{name}: {sizes}; they must be equal")
        if a == b:
            raise UsageError(f"{name}: clean and corrupted are the same tokens")
        if pair.answer == pair.foil:
            raise UsageError(f"{name}: answer and foil are the same token")

    def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

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
        is_one = isinstance(found[0], int)
        positions[key] = torch.tensor(found) if is_one else padded(found, -1)
    length = torch.tensor([len(ids) for ids in clean.input_ids])
    return PromptPairs(
        task=task,
        clean=padded(clean.input_ids, pad),
        corrupted=padded(corrupted.input_ids, pad),
        length=length,
        answer=torch.tensor(answers),
        foil=torch.tensor(foils),
        positions=positions | {"END": length - 1},
        candidates=None if candidates[0] is None else torch.tensor(candidates),
        text=texts,
        corrupted_text=corrupted_texts,
        group=groups,
        dropped=dict(dropped),
    )


def first_of_groups(pairs: PromptPairs, n_groups: int, n_each: int) -> PromptPairs:
    """The first `n_each` prompts of each of the first `n_groups` groups, group after group; fewer
    where a group has fewer."""
    members: dict[str, list[int]] = {}
    for i, name in enumerate(pairs.group):
        members.setdefault(name, []).append(i)
    return pairs[[i for rows in list(members.values())[:n_groups] for i in rows[:n_each]]]
