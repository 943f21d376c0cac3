"""What the output of MLP0 is made of: sparse features, probes, periods, and their arithmetic.

The analyses of Gould et al. (arXiv 2312.09230, Sec. 3) on one vector for each ordinal token. Every
one comes with its control: permuted residues, other moduli, permuted numbers, random features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from replib.chapters.successor_heads.index_domain import ROUNDING
from replib.chapters.successor_heads.ordinals import AllTokens, OrdinalClass
from replib.errors import UsageError
from replib.metrics import Estimate, Null, bootstrap, proportion, rng
from replib.models.device import one_thread
from replib.models.finite import check_logits

MODULI = (7, 8, 9, 10, 11, 12)
TOO_FEW = "{} of the integers 0 to 199 are single tokens; at least 100 are needed"


# --- Sparse features (Sec. 3.2) -------------------------------------------------------------------


@dataclass(frozen=True)
class Sae:
    """Sparse autoencoders trained side by side, one a seed."""

    decoder: Float[Tensor, "seed feature d"]  # unit directions in the space of the inputs
    codes: Float[Tensor, "seed item feature"]
    explained: Float[Tensor, " seed"]  # share of the variance

    @property
    def active(self) -> float:
        """How many features a token has, on average."""
        return float((self.codes > 1e-3).sum(-1).double().mean())


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


def items(every: AllTokens, only: str = "") -> tuple[Int[Tensor, " item"], Int[Tensor, " item"]]:
    """The tokens that have a successor, as rows of `every`, and their successors as tokens; of one
    class `only`, or of all."""
    pairs = every.pairs[every.of(only)[every.pairs[:, 0]]] if only else every.pairs
    return pairs[:, 0], every.tokens[pairs[:, 1]]


def most_important(drop: Float[Tensor, "seed item feature"]) -> Int[np.ndarray, "seed item"]:
    """The feature whose removal lowers the successor's logit most (Sec. 3.2), from how far each
    removal lowers it. Raises UsageError if that is not finite."""
    check_logits(drop, "what features add to the logits")
    return drop.argmax(-1).numpy()


def examples(
    index: Int[Tensor, " item"], feature: Int[np.ndarray, " item"], most: int = 12
) -> pd.DataFrame:
    """The most important feature of the first few numbers, in one dictionary."""
    return pd.DataFrame({"number or index": index, "feature": feature}).head(most).T


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


def middle(values: Float[np.ndarray, " value"]) -> Estimate:
    """The mean and the middle 95% of some values: how far they spread, not how well their mean is
    known."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


@dataclass(frozen=True)
class Coverage:
    """Modal coverage with one modulus."""

    seeds: Float[np.ndarray, " seed"]
    null: Null  # averaged over seeds, when the residues are permuted over the tokens

    @property
    def excess(self) -> float:
        """How far it lies above that of permuted residues."""
        return float(self.seeds.mean() - self.null.draws.mean())

    @property
    def bars(self) -> dict[str, Estimate]:
        """Both, with the middle 95% of dictionaries and of permutations."""
        return {"observed": middle(self.seeds), "residues permuted": middle(self.null.draws)}


def coverage(
    feature: Int[np.ndarray, "seed item"],
    residue: Int[np.ndarray, " item"],
    generator: np.random.Generator,
    draws: int = 100,
) -> Coverage:
    """`modal_coverage` of the residues as they are, and permuted over the tokens."""
    orders = (generator.permutation(residue) for _ in range(draws))
    null = np.array([modal_coverage(feature, order).mean() for order in orders])
    return Coverage(modal_coverage(feature, residue), Null(null))


@dataclass(frozen=True)
class Modal:
    """The modal feature of each residue 0 to 9, the most frequent among its tokens."""

    directions: Float[Tensor, "10 d"]  # of length 1
    sized: Float[Tensor, "10 d"]  # times the mean code in the tokens of the residue


def modal_features(
    sae: Sae,
    feature: Int[np.ndarray, "seed item"],
    residue: Int[Tensor, " item"],
    item: Int[Tensor, " item"],
    best: int,
) -> Modal:
    """In the dictionary of one seed, `best`. `feature`: the most important one of each item, whose
    rows of the codes are `item`."""
    own = [(residue == r).numpy() for r in range(10)]
    modal = [int(np.bincount(feature[best][mine]).argmax()) for mine in own]
    codes = sae.codes[best][item]
    size = torch.stack([codes[mine, f].mean() for mine, f in zip(own, modal, strict=True)])
    directions = sae.decoder[best][modal]
    return Modal(directions, directions * size[:, None])


def coverage_bars(coverages: Mapping[int, Coverage]) -> dict[str, dict[str, Estimate]]:
    """Of several moduli."""
    return {f"mod {m}": one.bars for m, one in coverages.items()}


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
) -> Null:
    """Mean cosine when the directions of the columns are permuted over the rows."""
    orders = (generator.permutation(10) for _ in range(draws))
    return Null(np.array([float(cosine[torch.arange(10), order].mean()) for order in orders]))


def chance_pvalue(right: Bool[Tensor, " item"], chance: float = 0.1) -> float:
    """How often guessing would be right as often as this (binomial, one-sided)."""
    return stats.binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue


def against_guessing(right: Mapping[str, Bool[Tensor, " item"]]) -> dict[str, float]:
    """How often guessing would be as often right, for all classes together; and in how many single
    classes that is below 1%."""
    p = {name: chance_pvalue(one) for name, one in right.items()}
    pooled = chance_pvalue(torch.cat(list(right.values())))
    return {"p": pooled, "classes_above": sum(value < 0.01 for value in p.values())}


def read_by_probe(
    x: Float[Tensor, "token d"], every: AllTokens, trained_on: str = ""
) -> tuple[Float[Tensor, "10 d"] | None, dict[str, Bool[Tensor, " item"]]]:
    """Is the residue of each token read by a probe that is trained on another class, `trained_on`,
    or else on all classes but the one it reads? Returns the last probe, and an answer for each
    token of the classes that are read: none if there is only one class."""
    residue, probe, right = every.index % 10, None, {}
    for name in every.names if len(every.names) > 1 else ():
        if name != trained_on:
            train = every.of(trained_on) if trained_on else ~every.of(name)
            probe, bias = train_probe(x[train], residue[train])
            right[name] = ((x @ probe.T + bias).argmax(-1) == residue)[every.of(name)]
    return probe, right


def probe_bars(right: Mapping[str, Bool[Tensor, " item"]]) -> dict[str, Estimate]:
    """Share of the tokens of each class that the probe reads, as bars."""
    bars = {name.replace(" ", "\n"): proportion(one) for name, one in right.items()}
    return bars or {"none": Estimate(0.0, 0.0, 0.0, 0)}


def mean_share(right: Mapping[str, Bool[Tensor, " item"]]) -> float:
    """Mean over classes of that share; NaN if there is none."""
    return float(np.mean([proportion(one).value for one in right.values()] or [np.nan]))


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
    x: Float[Tensor, "token d"], every: AllTokens, leave: str
) -> Float[Tensor, "10 d"]:
    """A direction for each residue without any training: the mean of its tokens, each taken
    relative to the mean of its class, over all classes but `leave`. For models in which no SAE can
    be trained on numbers."""
    kept = ~every.of(leave)
    centred, residue, domain = x[kept].clone(), every.index[kept] % 10, every.domain[kept]
    for d in domain.unique():
        centred[domain == d] -= x[kept][domain == d].mean(0)
    zero = torch.zeros(x.shape[1], dtype=x.dtype)
    return torch.stack(
        [centred[residue == r].mean(0) if (residue == r).any() else zero for r in range(10)]
    )


def n_beyond(power: Float[Tensor, " neuron"], null: Null) -> int:
    """How many neurons are beyond 95% of the best ones under the null."""
    return int((power > np.quantile(null.draws, 0.95)).sum())


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


def tuned(results: Sequence[Float[Tensor, "item target"]]) -> Float[Tensor, " odd_item"]:
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


@dataclass(frozen=True)
class Exchanged:
    """Success of an exchange of features within one class."""

    success: Estimate  # over the tokens that did not tune the scale
    null: Null  # the same with random directions of the same lengths


def against_random(
    exchange: Callable[[str, Tensor, float], Tensor],
    name: str,
    features: Float[Tensor, "10 d_model"],
    seed: int,
    draws: int = 20,
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
) -> Exchanged:
    """Exchange features in the class `name` with the scale that works best on every other token,
    and do the same with random features. `exchange(name, features, scale)` returns successes
    [item target]."""

    def success(f: Tensor) -> Tensor:
        return tuned([exchange(name, f, scale) for scale in scales])

    value = success(features)
    value = value[~value.isnan()]
    other = (random_like(features, rng(seed, name, i)) for i in range(draws))
    null = np.array([float(success(f).nanmean()) for f in other])
    return Exchanged(bootstrap(value, range(len(value)), rng(seed, "2.12", name)), Null(null))


def mean_success(tested: Mapping[str, Exchanged]) -> float:
    """Over classes; NaN if there is none."""
    return float(np.mean([one.success.value for one in tested.values()] or [np.nan]))


def exchange_table(tested: Mapping[str, Exchanged]) -> pd.DataFrame:
    """A row for each class."""
    rows = {
        name: {
            "success": one.success.value,
            "low": one.success.low,
            "high": one.success.high,
            "random features, 95th pct.": float(np.quantile(one.null.draws, 0.95)),
            "held-out tokens": str(one.success.n),
        }
        for name, one in tested.items()
    }
    return pd.DataFrame(rows).T
