"""Is the output of MLP0 an index part plus a domain part?

Gould et al. (arXiv 2312.09230), Sec. 3.1: two linear maps should rebuild a token from two others,
x(i, d) ≈ pi_N x(i, d') + pi_D x(i', d): the index of one, of another class d', and the domain of
the other, of another index i'.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.errors import UsageError

ROUNDING = 1e-5  # of the largest value: what varies less in float32 may be nothing else


def principal(
    x: Float[Tensor, "item d"], most: int, fitted_on: Tensor | slice = slice(None)
) -> Float[Tensor, "item k"]:
    """Coordinates in the directions of largest variance of `x[fitted_on]`, its mean taken out. At
    most `most`, and only directions in which `x[fitted_on]` varies beyond rounding: other items may
    reach far into the rest."""
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
