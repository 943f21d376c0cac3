"""Is the output of MLP0 an index part plus a domain part?

Gould et al. (arXiv 2312.09230), Sec. 3.1: two linear maps should rebuild a token from two others,
x(i, d) ≈ pi_N x(i, d') + pi_D x(i', d): the index of one, of another class d', and the domain of
the other, of another index i'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.chapters.successor_heads.ordinals import ROMAN, AllTokens
from replib.errors import UsageError
from replib.metrics import Estimate, Null, proportion, rng

ROUNDING = 1e-5  # of the largest value: what varies less in float32 may be nothing else


def principal(
    x: Float[Tensor, "item d"], fitted_on: Bool[Tensor, " item"], most: int = 40
) -> Float[Tensor, "item k"]:
    """Coordinates in the directions of largest variance of `x[fitted_on]`, its mean taken out. At
    most `most`, and no more than half as many as it has items; only directions in which
    `x[fitted_on]` varies beyond rounding: other items may reach far into the rest."""
    most = min(most, int(fitted_on.sum()) // 2)
    centred = x - x[fitted_on].mean(0)
    _, size, directions = torch.linalg.svd(centred[fitted_on], full_matrices=False)
    return centred @ directions[:most][size[:most] > ROUNDING * size[0]].T


def triples(
    index: Int[Tensor, " item"],
    domain: Int[Tensor, " item"],
    targets: Bool[Tensor, " item"],
    partners: Bool[Tensor, " item"],
    mates: Bool[Tensor, " item"],
    generator: np.random.Generator,
    per_target: int = 10,
) -> Int[Tensor, "case 3"]:
    """Cases to fit or to rebuild: a target x(i, d); one of the `partners`, x(i, d'), with its index
    in another class; one of the `mates`, x(i', d), of its class. `per_target` of each target, at
    random; none of a target without partner or mate."""
    n, d = index.numpy(), domain.numpy()
    rows = []
    for t in np.flatnonzero(targets.numpy()):
        same_index = np.flatnonzero(partners.numpy() & (n == n[t]) & (d != d[t]))
        same_domain = np.flatnonzero(mates.numpy() & (d == d[t]) & (n != n[t]))
        if len(same_index) and len(same_domain):
            a = generator.choice(same_index, per_target)
            b = generator.choice(same_domain, per_target)
            rows += [(t, i, j) for i, j in zip(a, b, strict=True)]
    return torch.from_numpy(np.array(rows, dtype=int).reshape(-1, 3))


def fit_maps(y: Float[Tensor, "item k"], fit: Int[Tensor, "case 3"]) -> Float[Tensor, "2*k k"]:
    """pi_N above pi_D, by ridge regression of the targets on their partners and mates side by side.
    Raises UsageError if there is no case."""
    if not len(fit):
        raise UsageError("index and domain: no two classes have an index in common")
    inputs = y[fit[:, 1:]].flatten(1)
    gram = inputs.T @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=y.dtype)
    return torch.linalg.solve(gram + ridge, inputs.T @ y[fit[:, 0]])


def nearest(
    built: Float[Tensor, "case k"], y: Float[Tensor, "item k"], among: Bool[Tensor, " item"]
) -> Int[Tensor, " case"]:
    """The item nearest to each rebuilt vector (largest cosine), of those `among` which to look."""
    unit = torch.nn.functional.normalize
    close = unit(built) @ unit(y).T
    close[:, ~among] = -2.0
    return close.argmax(-1)


def share_right(
    tokens: Int[Tensor, " item"], target: Int[Tensor, " case"], near: Int[Tensor, " case"]
) -> Float[Tensor, " target"]:
    """Share of each target's cases in which the nearest item is its token. A token of two classes,
    such as May, is right as either."""
    right = (tokens[near] == tokens[target]).double()
    shares = [float(right[target == t].mean()) for t in target.unique()]
    return torch.tensor(shares, dtype=torch.float64)


def folds(n: int, k: int, generator: np.random.Generator) -> Int[np.ndarray, " item"]:
    """The part, 0 to k − 1, in which each item is held out: at random, as equal as can be."""
    return generator.permutation(np.arange(n) % k)


def shuffle_within(
    index: Int[Tensor, " item"], domain: Int[Tensor, " item"], generator: np.random.Generator
) -> Int[Tensor, " item"]:
    """The indices, permuted among the tokens of each class."""
    out = index.clone()
    for d in domain.unique():
        at = (domain == d).nonzero()[:, 0].numpy()
        out[at] = index[generator.permutation(at)]
    return out


@dataclass(frozen=True, eq=False)
class Round:
    """Tokens that are rebuilt with one pair of maps; each field says which."""

    held_out: Bool[Tensor, " item"]
    seen: Bool[Tensor, " item"]  # by the fit
    mates: Bool[Tensor, " item"]  # they give the domain part
    among: Bool[Tensor, " item"]  # of these, the nearest is looked for
    labels: tuple  # of the random draws


def rounds(word: AllTokens, seed: int) -> dict[str, list[Round]]:
    """What is rebuilt, by claim. 2.6: each token but the Roman numerals, in one of five folds, by
    maps fitted on the other four, among all these tokens. 2.7: the Roman numerals, which no map has
    seen; they give each other the domain part and are decoded among themselves. A claim without
    tokens is left out, and both are where there is only one class to fit on."""
    roman = word.of(ROMAN)
    if len(word.domain[~roman].unique()) < 2:
        return {}
    fold = torch.full_like(word.index, -1)
    fold[~roman] = torch.from_numpy(folds(int((~roman).sum()), 5, rng(seed, "folds")))
    each = []
    for k in range(5):
        seen = ~roman & (fold != k)
        each.append(Round(fold == k, seen, seen, ~roman, ("fit", k)))
    unseen = [Round(roman, ~roman, roman, roman, ("Roman",))]
    return {"2.6": each, "2.7": unseen} if roman.any() else {"2.6": each}


WHY_NOT = {
    "2.6": "only one class of ordinal tokens",
    "2.7": "no Roman numerals, or only one class to fit the maps on",
}


def chances(word: AllTokens) -> dict[str, dict[str, float]]:
    """For each claim, how often a token drawn at random would be the right one."""
    roman = int(word.of(ROMAN).sum())
    of_roman = {"chance": 1 / max(1, roman), "roman": roman}
    return {"2.6": {"chance": 1 / (len(word.tokens) - roman)}, "2.7": of_roman}


def cases(
    index: Int[Tensor, " item"],
    domain: Int[Tensor, " item"],
    one: Round,
    generator: np.random.Generator,
) -> tuple[Int[Tensor, "fit 3"], Int[Tensor, "rebuild 3"]]:
    """The triples to fit the maps on, and those to rebuild."""
    fit = triples(index, domain, one.seen, one.seen, one.seen, generator)
    return fit, triples(index, domain, one.held_out, one.seen, one.mates, generator)


def shuffled_indices(word: AllTokens, seed: int, draws: int = 20) -> list[Int[Tensor, " item"]]:
    """The indices shuffled within classes, several times; Roman numerals keep theirs."""
    roman = word.of(ROMAN)
    return [
        torch.where(
            roman,
            word.index,
            shuffle_within(word.index, word.domain, rng(seed, "shuffled index", i)),
        )
        for i in range(draws)
    ]


def examples(
    tokenizer: PreTrainedTokenizerBase, word: AllTokens, seed: int, most: int = 6
) -> pd.DataFrame:
    """A few triples in words, one of each class."""
    each = torch.ones_like(word.index, dtype=torch.bool)
    found = triples(word.index, word.domain, each, each, each, rng(seed, "examples"), 1)
    rows = {int(word.domain[case[0]]): case for case in found.flip(0)}.values()
    words = [[tokenizer.decode([int(word.tokens[i])]) for i in case] for case in rows]
    columns = ["to rebuild, x(i, d)", "its index, x(i, d')", "its class, x(i', d)"]
    return pd.DataFrame(words[::-1][:most], columns=columns)


def beside_shuffles(
    share: Float[Tensor, " target"], drawn: Sequence[float]
) -> tuple[Estimate, Null]:
    """Mean share of right cases over tokens, and what it is with shuffled indices: what claims 2.6
    and 2.7 are decided by, with `chances`."""
    return proportion(share), Null(np.array(drawn))


def bars(found: Mapping[str, tuple[Estimate, Null]]) -> dict[str, dict[str, Estimate]]:
    """Shares rebuilt, by claim, beside the 95th percentile of those with shuffled indices."""
    names = {"2.6": "held-out\ntokens", "2.7": "Roman\nnumerals"}
    out = {"none": {"rebuilt": Estimate(0.0, 0.0, 0.0, 0)}} if not found else {}
    for claim, (right, null) in found.items():
        line = float(np.quantile(null.draws, 0.95))
        flat = Estimate(line, line, line, right.n)
        out[names[claim]] = {"rebuilt": right, "shuffled index (95th pct.)": flat}
    return out
