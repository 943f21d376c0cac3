"""What the output of MLP0 is made of: sparse features, probes, periods, and their arithmetic.

The analyses of Gould et al. (arXiv 2312.09230, Sec. 3) on one vector for each ordinal token. Every
one comes with its control: permuted residues, other moduli, permuted numbers, random features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from replib.chapters.successor_heads.index_domain import ROUNDING
from replib.chapters.successor_heads.ordinals import OrdinalClass
from replib.errors import UsageError
from replib.metrics import Estimate
from replib.models.device import one_thread
from replib.models.finite import check_logits

MODULI = (7, 8, 9, 10, 11, 12)


# --- Sparse features (Sec. 3.2) -------------------------------------------------------------------


@dataclass(frozen=True)
class Sae:
    """Sparse autoencoders trained side by side, one a seed."""

    decoder: Float[Tensor, "seed feature d"]  # unit directions in the space of the inputs
    codes: Float[Tensor, "seed item feature"]
    explained: Float[Tensor, " seed"]  # share of the variance


@one_thread()
def train_saes(
    x: Float[Tensor, "item d"],
    n_seeds: int,
    generator: np.random.Generator,
    n_features: int = 64,
    l1: float = 0.03,
    steps: int = 800,
    rank: int = 64,
) -> Sae:
    """ReLU encoder, unit-norm decoder, squared error plus `l1` times the codes, full batches.

    The paper's size and penalty are not known. Inputs are centred, scaled to mean length 1 and
    reduced to their `rank` principal directions, which for a few hundred tokens loses little.

    In float32, whatever the model's number type, and on one thread: 800 steps magnify the last bit
    of an input, or of a sum in another order, until single features are others.
    """
    kind, x = x.dtype, x.float()
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:rank]
    y = (x - x.mean(0)) @ basis.T
    size = y.norm(dim=-1).mean()
    y = y / size
    torch_rng = torch.Generator().manual_seed(int(generator.integers(2**31)))
    d = y.shape[1]
    with torch.enable_grad():
        start = torch.randn(n_seeds, n_features, d, generator=torch_rng)
        decoder = torch.nn.functional.normalize(start, dim=-1).requires_grad_()
        encoder = decoder.detach().transpose(1, 2).clone().requires_grad_()
        bias = torch.zeros(n_seeds, 1, n_features).requires_grad_()
        adam = torch.optim.Adam([decoder, encoder, bias], lr=5e-3)
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = 5e-3 * min(1.0, 3 * (1 - step / steps))
            unit = torch.nn.functional.normalize(decoder, dim=-1)
            codes = torch.relu(y @ encoder + bias)
            loss = ((codes @ unit - y) ** 2).sum(-1).mean(-1) + l1 * codes.sum(-1).mean(-1)
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(decoder, dim=-1)
        codes = torch.relu(y @ encoder + bias)
        left = ((codes @ unit - y) ** 2).sum((-1, -2)) / (y**2).sum()
        return Sae((unit @ basis).to(kind), (codes * size).to(kind), 1 - left)


def most_important(drop: Float[Tensor, "seed item feature"]) -> Int[np.ndarray, "seed item"]:
    """The feature whose removal lowers the successor's logit most (Sec. 3.2), from how far each
    removal lowers it. Raises UsageError if that is not finite."""
    check_logits(drop, "what features add to the logits")
    return drop.argmax(-1).numpy()


def modal_coverage(
    feature: Int[np.ndarray, "seed item"], residue: Int[np.ndarray, " item"]
) -> Float[np.ndarray, " seed"]:
    """Share of the tokens of a residue whose most important feature is the modal one, the most
    frequent among them (Sec. 3.2); averaged over residues."""
    out, values = np.zeros(len(feature)), np.unique(residue)
    for value in values:
        own = feature[:, residue == value]
        same = (own[:, :, None] == own[:, None, :]).sum(-1).max(-1)
        out += same / own.shape[1] / len(values)
    return out


def modal_features(
    feature: Int[np.ndarray, " item"], residue: Int[np.ndarray, " item"]
) -> Int[np.ndarray, " residue"]:
    """The modal feature of each residue 0 to 9, in one dictionary."""
    return np.array([np.bincount(feature[residue == r]).argmax() for r in range(10)])


def permuted_coverage(
    feature: Int[np.ndarray, "seed item"],
    residue: Int[np.ndarray, " item"],
    generator: np.random.Generator,
    draws: int = 100,
) -> Float[np.ndarray, " draw"]:
    """Coverage, averaged over seeds, when the residues are permuted over the tokens."""
    orders = (generator.permutation(residue) for _ in range(draws))
    return np.array([modal_coverage(feature, order).mean() for order in orders])


def middle(values: Float[np.ndarray, " value"]) -> Estimate:
    """The mean and the middle 95% of some values: how far they spread, not how well their mean is
    known."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


# --- Probe, neurons (Sec. 3.3) --------------------------------------------------------------------


def train_probe(
    x: Float[Tensor, "item d"], residue: Int[Tensor, " item"], decay: float = 1e-3, steps: int = 300
) -> tuple[Float[Tensor, "10 d"], Float[Tensor, "10"]]:
    """A linear 10-way classifier (logistic, with weight decay) of the residue: weights and biases,
    for inputs as they are. Trained in float32, whatever the model's number type."""
    kind, x = x.dtype, x.float()
    mean, size = x.mean(0), (x - x.mean(0)).norm(dim=-1).mean()
    y = (x - mean) / size
    with torch.enable_grad():
        weight = torch.zeros(10, x.shape[1], requires_grad=True)
        bias = torch.zeros(10, requires_grad=True)
        adam = torch.optim.Adam([weight, bias], lr=0.05)
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(y @ weight.T + bias, residue)
            loss = loss + decay * (weight**2).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    weight, bias = weight.detach() / size, bias.detach()
    return weight.to(kind), (bias - weight @ mean).to(kind)


def cosines(a: Float[Tensor, "10 d"], b: Float[Tensor, "10 d"]) -> Float[Tensor, "10 10"]:
    """Cosine of each direction of `a` with each of `b`, after the mean of the ten is taken out."""
    a, b = a - a.mean(0), b - b.mean(0)
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)


def mismatched(
    cosine: Float[Tensor, "10 10"], generator: np.random.Generator, draws: int = 200
) -> Float[np.ndarray, " draw"]:
    """Mean cosine when the directions of the columns are permuted over the rows."""
    orders = (generator.permutation(10) for _ in range(draws))
    return np.array([float(cosine[torch.arange(10), order].mean()) for order in orders])


def chance_pvalue(right: Bool[Tensor, " item"], chance: float = 0.1) -> float:
    """How often guessing would be right as often as this (binomial, one-sided)."""
    return stats.binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue


def period_power(activation: Float[Tensor, "neuron n"]) -> Float[Tensor, " neuron"]:
    """Share of a neuron's Fourier power, over n consecutive numbers, that has period 10. The
    constant part is left out; 0 for a neuron that varies by no more than rounding. Raises
    UsageError if n is no multiple of 10."""
    n = activation.shape[-1]
    if n % 10:
        raise UsageError(f"period 10 does not divide {n} numbers")
    x = activation.double()
    centred = x - x.mean(-1, keepdim=True)
    power = torch.fft.rfft(centred).abs() ** 2
    share = power[..., n // 10] / power[..., 1:].sum(-1).clamp_min(1e-30)
    varies = centred.abs().amax(-1) > ROUNDING * x.abs().amax(-1)
    return torch.where(varies, share, 0.0)


def period_null(
    activation: Float[Tensor, "neuron n"], generator: np.random.Generator, draws: int = 200
) -> Float[np.ndarray, " draw"]:
    """The best neuron's share when the numbers are permuted, all neurons alike, in each draw."""
    orders = (generator.permutation(activation.shape[-1]) for _ in range(draws))
    return np.array([float(period_power(activation[:, order]).max()) for order in orders])


def mean_features(
    x: Float[Tensor, "item d"], residue: Int[Tensor, " item"], domain: Int[Tensor, " item"]
) -> Float[Tensor, "10 d"]:
    """A direction for each residue without any training: the mean of its tokens, each taken
    relative to the mean of its class. For models in which no SAE can be trained on numbers."""
    centred = x.clone()
    for d in domain.unique():
        centred[domain == d] -= x[domain == d].mean(0)
    zero = torch.zeros(x.shape[1], dtype=x.dtype)
    return torch.stack(
        [centred[residue == r].mean(0) if (residue == r).any() else zero for r in range(10)]
    )


def sized_features(
    directions: Float[Tensor, "10 d"],
    codes: Float[Tensor, "item 10"],
    residue: Int[Tensor, " item"],
) -> Float[Tensor, "10 d"]:
    """The residues' features in the length that they have in tokens: unit `directions` times the
    mean code of the residue's own tokens."""
    size = torch.stack([codes[residue == r, r].mean() for r in range(10)])
    return directions * size[:, None]


# --- Vector arithmetic (Sec. 3.4) -----------------------------------------------------------------


def follows(
    said: Float[Tensor, "item target item"], ordinal: OrdinalClass
) -> Float[Tensor, "item target"]:
    """Do these logits of a class say the successor of the target residue? 1 if the winner within
    the class has the residue after the target's, 0 if not, NaN for the token's own residue and for
    residues that no token of the class follows. Raises UsageError for logits that are not finite.
    """
    check_logits(said, "the logits after an exchange of features")
    residue, target = ordinal.index % 10, torch.arange(10)
    success = (residue[said.argmax(-1)] == (target + 1) % 10).double()
    success[torch.arange(len(said)), residue] = torch.nan
    success[:, ~torch.isin((target + 1) % 10, residue)] = torch.nan
    return success


def tuned(results: Sequence[Float[Tensor, "item target"]]) -> Float[Tensor, " item"]:
    """Of the successes with several scales, one result a scale, those of the scale that works best
    on every other token (0, 2, ...): the mean of each token in between (NaN: no target)."""
    works = [float(result[0::2].nanmean().nan_to_num(0.0)) for result in results]
    return results[int(np.argmax(works))][1::2].nanmean(-1)


def random_like(
    features: Float[Tensor, "10 d_model"], generator: np.random.Generator
) -> Float[Tensor, "10 d_model"]:
    """Random directions of the same lengths."""
    drawn = torch.from_numpy(generator.standard_normal(tuple(features.shape))).to(features)
    return torch.nn.functional.normalize(drawn, dim=-1) * features.norm(dim=-1, keepdim=True)
