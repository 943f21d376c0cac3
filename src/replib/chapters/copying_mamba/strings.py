"""Synthetic strings to copy, and to look up in (Jelassi et al., 2402.01032, Sec. 3).

Thirty tokens, as in the released code: 26 letters, `$` begins, `|` separates, `.` ends, `*` is for
padding. With x a random string and g a run of letters in it:

    copy           $ x | x .
    prefix_ngram   $ g | x | a .       a = the letters that follow g in x
    suffix_ngram   $ x | g a .
    phone_book     $ entries | name number .

Unlike there, strings are not packed into contexts: all strings of a batch have one length, which is
drawn anew for each batch. A run g that occurs twice in x is not asked for. A phone book's entry is
a name of two letters, all different, and a number of four "digits", the letters a to j.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.errors import UsageError

ALPHABET = ascii_lowercase + "$|.*"
BOS, SEPARATOR, EOS, PAD = (ALPHABET.index(c) for c in "$|.*")
N_LETTERS = 26
N_GRAM = 3  # length of g, and of the answer to a lookup
NAME, NUMBER, N_DIGITS = 2, 4, 10  # letters of a name, "digits" of a number, different digits


@dataclass(frozen=True)
class Strings:
    """A batch of strings of one length. Answers end with `.`, which is part of them."""

    tokens: Int[Tensor, "string pos"]
    n_answer: int  # the last tokens of each string
    source: Int[Tensor, "string answer"]  # where each letter of the answer is read: a position

    @property
    def answers(self) -> Int[Tensor, "string answer"]:
        return self.tokens[:, -self.n_answer :]

    def to(self, device: str | torch.device) -> "Strings":
        return Strings(self.tokens.to(device), self.n_answer, self.source.to(device))


def to_text(tokens: Int[Tensor, " pos"]) -> str:
    """Tokens as the characters of `ALPHABET`."""
    return "".join(ALPHABET[token] for token in tokens.tolist())


def _letters(n: int, length: int, generator: torch.Generator, kinds: int = N_LETTERS) -> Tensor:
    return torch.randint(kinds, (n, length), generator=generator)


def _mark(token: int, n: int) -> Int[Tensor, "string 1"]:
    return torch.full((n, 1), token)


def copy(n: int, length: int, generator: torch.Generator) -> Strings:
    """`n` strings of `length` letters and their copies; raises UsageError below one letter."""
    if length < 1:
        raise UsageError(f"copy: a string of {length} letters; choose a length of 1 or more")
    return copies_of(_letters(n, length, generator))


def copies_of(x: Int[Tensor, "string length"]) -> Strings:
    """The task `copy` on given strings."""
    n, length = x.shape
    tokens = torch.cat([_mark(BOS, n), x, _mark(SEPARATOR, n), x, _mark(EOS, n)], 1)
    source = torch.arange(1, length + 1).expand(n, -1)
    return Strings(tokens, length + 1, source)


def duplicate_ngram(
    n: int, length: int, generator: torch.Generator, run: int
) -> tuple[Strings, Int[Tensor, "string 2"]]:
    """The task `copy` on strings in which a run of `run` letters occurs twice, and the places in
    the answer of the two letters that follow the runs (Sec. 3.4). Evaluation only. The two do not
    overlap, and different letters follow them. Who looks up the last `run` letters cannot tell
    which of the two follows. Raises UsageError where the string is too short for it."""
    if length < 2 * run + 2:
        raise UsageError(
            f"duplicate_ngram: a string of {length} letters has no room for two runs of {run}, "
            f"each followed by a letter; choose a length of {2 * run + 2} or more"
        )
    x = _letters(n, length, generator)
    gap = length - 2 * run - 1  # letters in neither run, less the one that follows the first
    a = torch.randint(gap, (n,), generator=generator)
    b = a + run + 1 + (torch.rand(n, generator=generator) * (gap - a)).long()
    rows, steps = torch.arange(n), torch.arange(run)
    x[rows[:, None], b[:, None] + steps] = x[rows[:, None], a[:, None] + steps]
    after = torch.stack([a, b], 1) + run
    first, second = x[rows, after[:, 0]], x[rows, after[:, 1]]
    other = (first + torch.randint(1, N_LETTERS, (n,), generator=generator)) % N_LETTERS
    x[rows, after[:, 1]] = torch.where(first == second, other, second)
    return copies_of(x), after


def _lookup(
    n: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Strings x, runs g that occur once in them, what follows g, and where that is in x. Raises
    UsageError where the string is too short for a run and its answer."""
    if length < 2 * N_GRAM:
        raise UsageError(
            f"n-gram lookup: a string of {length} letters has no room for a run and an answer of "
            f"{N_GRAM} each; choose a length of {2 * N_GRAM} or more"
        )
    kept: list[tuple[Tensor, Tensor]] = []
    while sum(len(x) for x, _ in kept) < n:
        x = _letters(n, length, generator)
        at = torch.randint(length - 2 * N_GRAM + 1, (n,), generator=generator)
        runs = x.unfold(1, N_GRAM, 1)
        same = (runs == runs[torch.arange(n), at][:, None]).all(-1)
        once = same.sum(1) == 1
        kept.append((x[once], at[once]))
    x, at = (torch.cat(some)[:n] for some in zip(*kept, strict=True))
    rows, steps = torch.arange(n)[:, None], torch.arange(N_GRAM)
    where = at[:, None] + N_GRAM + steps
    return x, x[rows, at[:, None] + steps], x[rows, where], where


def prefix_ngram(n: int, length: int, generator: torch.Generator) -> Strings:
    """Which letters follow the run that is named *before* the string? (Sec. 3.5)"""
    x, g, a, where = _lookup(n, length, generator)
    bar = _mark(SEPARATOR, n)
    tokens = torch.cat([_mark(BOS, n), g, bar, x, bar, a, _mark(EOS, n)], 1)
    return Strings(tokens, N_GRAM + 1, where + 2 + N_GRAM)


def suffix_ngram(n: int, length: int, generator: torch.Generator) -> Strings:
    """Which letters follow the run that is named *after* the string? (Sec. 3.5)"""
    x, g, a, where = _lookup(n, length, generator)
    tokens = torch.cat([_mark(BOS, n), x, _mark(SEPARATOR, n), g, a, _mark(EOS, n)], 1)
    return Strings(tokens, N_GRAM + 1, where + 1)


def phone_book(n: int, length: int, generator: torch.Generator) -> Strings:
    """`length` entries of a name and a number, then one of the names: which is its number? Raises
    UsageError where there are not so many names."""
    most = N_LETTERS**NAME
    if not 1 <= length <= most:
        raise UsageError(f"phone_book: {length} entries; there are 1 to {most} names")
    names = torch.rand(n, most, generator=generator).topk(length, 1).indices
    names = torch.stack([names // N_LETTERS, names % N_LETTERS], -1)
    numbers = _letters(n * length, NUMBER, generator, N_DIGITS).view(n, length, NUMBER)
    asked = torch.randint(length, (n,), generator=generator)
    rows = torch.arange(n)
    book = torch.cat([names, numbers], -1).flatten(1)
    tokens = torch.cat(
        [
            _mark(BOS, n),
            book,
            _mark(SEPARATOR, n),
            names[rows, asked],
            numbers[rows, asked],
            _mark(EOS, n),
        ],
        1,
    )
    where = 1 + asked[:, None] * (NAME + NUMBER) + NAME + torch.arange(NUMBER)
    return Strings(tokens, NUMBER + 1, where)


TASKS: Mapping[str, Callable[[int, int, torch.Generator], Strings]] = {
    "copy": copy,
    "prefix_ngram": prefix_ngram,
    "suffix_ngram": suffix_ngram,
    "phone_book": phone_book,
}


def answer_logits(network: torch.nn.Module, strings: Strings) -> Float[Tensor, "string answer v"]:
    """Logits for each token of the answers, given the true tokens before it (teacher forcing)."""
    out = network(strings.tokens)
    return getattr(out, "logits", out)[:, -strings.n_answer - 1 : -1]


@torch.no_grad()
def teacher_forced(network: torch.nn.Module, strings: Strings) -> Bool[Tensor, "string answer"]:
    """Is each token of the answer the most probable one, given the true tokens before it? All are
    where greedy decoding gives the whole answer, so string accuracy does not depend on teacher
    forcing; character accuracy does."""
    return answer_logits(network, strings).argmax(-1) == strings.answers


@torch.no_grad()
def next_token(
    network: torch.nn.Module, tokens: Int[Tensor, "string pos"]
) -> Int[Tensor, " string"]:
    """The most probable token after each of these."""
    out = network(tokens)
    return getattr(out, "logits", out)[:, -1].argmax(-1)


@torch.no_grad()
def free_running(network: torch.nn.Module, strings: Strings) -> Bool[Tensor, "string answer"]:
    """Is each token of the greedily decoded answer the one that belongs at its place? After an
    error the model goes on from what it said itself."""
    tokens = strings.tokens[:, : -strings.n_answer]
    for _ in range(strings.n_answer):
        tokens = torch.cat([tokens, next_token(network, tokens)[:, None]], 1)
    return tokens[:, -strings.n_answer :] == strings.answers
