"""Ordinary text: passages, their positions, and what a head that wins there could be doing.

The four behaviours of Gould et al. (arXiv 2312.09230, Sec. 4) are told apart by a rule of ours on
the words that the head attends to most.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.chapters.successor_heads.ordinals import ROMAN, WORDS, WRAPS
from replib.errors import UsageError
from replib.metrics import Estimate, proportion
from replib.prompts.texts import public_domain_text


def text_windows(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    n_windows: int,
    n_tokens: int,
    generator: np.random.Generator,
) -> Int[Tensor, "window pos"]:
    """Passages from the start of a sentence, each of `n_tokens`. One half is drawn at random from
    the whole text, the other among passages in which a number word or ordinal word is followed by
    its successor soon after: plain samples hold next to none."""
    sentences = np.array([0] + [m.end() for m in re.finditer(r"[.!?]['\"]? (?=[A-Z'\"])", text)])
    sentences = sentences[sentences < len(text) - 8 * n_tokens]
    rich = []
    for name in ("number words", "ordinal words"):
        for a, b in zip(WORDS[name], WORDS[name][1:], strict=False):
            rich += [m.start() for m in re.finditer(rf"\b{a}\b[^.]{{1,40}}\b{b}\b", text)]
    rich = np.unique(sentences[np.searchsorted(sentences, sorted(rich), "right") - 1])
    starts = np.concatenate(
        [
            generator.choice(sentences, n_windows - n_windows // 2, replace=False),
            generator.choice(rich, n_windows // 2, replace=len(rich) < n_windows // 2),
        ]
    )
    rows = []
    for start in starts:
        ids = tokenizer(text[start : start + 12 * n_tokens]).input_ids
        if len(ids) < n_tokens:
            raise UsageError(f"text: a passage has only {len(ids)} of {n_tokens} tokens")
        rows.append(ids[:n_tokens])
    return torch.tensor(rows)


def passages(
    tokenizer: PreTrainedTokenizerBase,
    n_windows: int,
    n_tokens: int,
    generator: np.random.Generator,
) -> Int[Tensor, "window pos"]:
    """`text_windows` of the World English Bible."""
    return text_windows(tokenizer, public_domain_text(), n_windows, n_tokens, generator)


KINDS = ("successorship", "copying", "greater-than", "acronym", "other")


def places(word: str) -> dict[str, int]:
    """The classes a word of running text belongs to, with its place: case is free, but a letter,
    a Roman numeral or a prefix must be in capitals as in the class ("a" is an article)."""
    found = {name: some.get(_as_in(name, word.strip())) for name, some in _PLACES.items()}
    return {name: place for name, place in found.items() if place is not None}


def _as_in(name: str, word: str) -> str:
    exact = name in ("letters", ROMAN, "day prefixes", "month prefixes")
    return word if exact else word.lower()


_PLACES = {
    name: {_as_in(name, word): i for i, word in enumerate(words, 1)}
    for name, words in WORDS.items()
}


def kind_of(next_word: str, attended: list[str]) -> str:
    """What a prediction of `next_word` from the words attended to would be (KINDS, first match).

    A rule of ours for the four behaviours of Gould et al., Sec. 4: *successorship* if the next
    word follows one of them in a class; *copying* if it is one of them; *greater-than* if it comes
    later in the class of one of them; *acronym* if it is in capitals and begins with the initial
    of one of them, a capitalised word.
    """
    word = next_word.strip()
    here = places(word)
    later = False
    for other in attended:
        for name, place in places(other).items():
            if name in here:
                step = here[name] - place
                if step == 1 or (name in WRAPS and step == 1 - len(WORDS[name])):
                    return "successorship"
                later |= step > 1
    if word and word in {other.strip() for other in attended}:
        return "copying"
    if later:
        return "greater-than"
    initials = {o.strip()[0] for o in attended if len(o.strip()) > 1 and o.strip()[0].isupper()}
    if word.isalpha() and word.isupper() and word[0] in initials:
        return "acronym"
    return "other"


@dataclass(frozen=True, eq=False)
class Positions:
    """Places in passages at which a next token is predicted, one a row."""

    prompt: Int[Tensor, " row"]  # the passage
    pos: Int[Tensor, " row"]
    following: Int[Tensor, " row"]  # the next token

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def at(self) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Passage and position of each row."""
        return self.prompt, self.pos


def positions(
    windows: Int[Tensor, "window pos"], unknown: int | None = None, first: int = 4
) -> Positions:
    """Every position from `first` on that has a next token, passage by passage; those whose next
    token is the `unknown` one are left out."""
    n, length = windows.shape
    prompt = torch.arange(n).repeat_interleave(length - 1 - first)
    pos = torch.arange(first, length - 1).repeat(n)
    following = windows[prompt, pos + 1]
    known = torch.ones_like(following, dtype=torch.bool)
    if unknown is not None:
        known = following != unknown
    return Positions(prompt[known], pos[known], following[known])


def kinds_at(
    tokenizer: PreTrainedTokenizerBase,
    windows: Int[Tensor, "window pos"],
    at: Positions,
    attended: Int[Tensor, "row k"],
) -> np.ndarray:
    """`kind_of` each next token, from the words at the positions `attended` to."""
    word = {int(t): tokenizer.decode([int(t)]) for t in windows.unique()}
    return np.array(
        [
            kind_of(word[int(t)], [word[int(windows[p, s])] for s in some])
            for t, p, some in zip(at.following, at.prompt, attended.cpu(), strict=True)
        ]
    )


def shares(
    kinds: np.ndarray, prompt: Int[Tensor, " row"], won: Bool[Tensor, " row"]
) -> dict[str, tuple[Estimate, Estimate]]:
    """Share of each kind among the positions that a head wins, and among all; rows of one passage
    go together. Where none is won, the first is 0 of 0."""
    found = {}
    for kind in KINDS:
        fits, mine = torch.from_numpy(kinds == kind), Estimate(0.0, 0.0, 0.0, 0)
        if won.any():
            mine = proportion(fits[won], prompt[won].tolist())
        found[kind] = mine, proportion(fits, prompt.tolist())
    return found


def bars(in_text: Mapping[str, tuple[Estimate, Estimate]], head: str) -> dict:
    """Both shares of every kind that has a name, as bars."""
    names = (f"positions that {head} wins", "all positions")
    return {kind: dict(zip(names, in_text[kind], strict=True)) for kind in KINDS[:-1]}


def numbers(in_text: Mapping[str, tuple[Estimate, Estimate]]) -> dict[str, int | Estimate]:
    """How many positions there are, and won; and the shares among the latter of all kinds but
    successorship, which is claim 2.15."""
    won, everywhere = in_text["successorship"]
    rest = {kind.replace("-", "_"): in_text[kind][0] for kind in KINDS[1:]}
    return {"positions": everywhere.n, "wins": won.n, **rest}


def succession(in_text: Mapping[str, tuple[Estimate, Estimate]]) -> dict[str, object]:
    """What claim 2.15 is decided by: the share of successorship among the positions won (none: no
    value), and among all."""
    won, everywhere = in_text["successorship"]
    return {"value": won if won.n else None, "base": everywhere.value, "wins": won.n}
