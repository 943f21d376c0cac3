"""What the output of MLP0 is made of: sparse features, probes, and periods.

The analyses of Gould et al. (arXiv 2312.09230, Sec. 3) on one vector for each ordinal token. Every
one comes with its control: permuted residues, other moduli, permuted numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats
from torch import Tensor

from replib.chapters.successor_heads.index_domain import ROUNDING
from replib.chapters.successor_heads.ordinals import AllTokens
from replib.errors import UsageError
from replib.metrics import Estimate, Null, bootstrap, proportion, rng, seeds_mean
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

    In float32 on one thread of the processor, whatever the model's number type and device: 800
    steps magnify the last bit of an input, or of a sum in another order, until single features are
    others.
    """
    like, x = x, x.float().cpu()
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
        return Sae((unit @ basis).to(like), (codes * size).to(like), 1 - left)


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


def led_by_ten(coverages: Mapping[int, Coverage], integers: int) -> dict[str, object]:
    """What claim 2.8 is decided by: mean coverage of modulus 10 over dictionaries, its null, and
    how far its excess leads that of the best other modulus."""
    excess = {m: one.seeds - one.null.draws.mean() for m, one in coverages.items()}
    ten, other = coverages[10], max((m for m in excess if m != 10), key=lambda m: excess[m].mean())
    more = {"integers": integers, "seeds": len(ten.seeds), "excess": float(excess[10].mean())}
    lead = seeds_mean(excess[10] - excess[other])
    return {
        "value": seeds_mean(ten.seeds, share=True),
        "null": ten.null,
        "lead": lead,
        "rival": other,
        **more,
    }


def coverage_bars(coverages: Mapping[int, Coverage]) -> dict[str, dict[str, Estimate]]:
    """Of several moduli."""
    return {f"mod {m}": one.bars for m, one in coverages.items()}


# --- Probe, neurons (Sec. 3.3) --------------------------------------------------------------------


def train_probe(
    x: Float[Tensor, "item d"], residue: Int[Tensor, " item"], decay: float = 1e-3, steps: int = 300
) -> tuple[Float[Tensor, "10 d"], Float[Tensor, "10"]]:
    """A linear 10-way classifier (logistic, with weight decay) of the residue: weights and biases,
    for inputs as they are. Trained in float32 on the processor, whatever the model's number type
    and device."""
    like, x = x, x.float().cpu()
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
    return weight.to(like), (bias - weight @ mean).to(like)


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


def matched(
    probe: Float[Tensor, "10 d"], modal: Float[Tensor, "10 d"], seed: int
) -> dict[str, object]:
    """What claim 2.9 is decided by: mean cosine of the two directions of a residue, and of pairs in
    another order."""
    cosine = cosines(probe, modal)
    value = bootstrap(cosine.diagonal(), range(10), rng(seed, "2.9 interval"))
    return {"value": value, "null": mismatched(cosine, rng(seed, "2.9"))}


def chance_pvalue(right: Bool[Tensor, " item"], chance: float = 0.1) -> float:
    """How often guessing would be right as often as this (binomial, one-sided)."""
    return stats.binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue


def pooled(right: Mapping[str, Bool[Tensor, " item"]]) -> dict[str, object]:
    """What claim 2.10 is decided by: the share of tokens that are read, how often guessing would be
    as often right, and in how many single classes that is below 1%. No value without tokens."""
    if not right:
        return {"value": None}
    every, each = torch.cat([*right.values()]), map(chance_pvalue, right.values())
    above = sum(p < 0.01 for p in each)
    more = {"p": chance_pvalue(every), "classes_above": above, "tokens": len(every)}
    return {"value": proportion(every), **more}


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
            right[name] = ((x @ probe.T + bias).argmax(-1).cpu() == residue)[every.of(name)]
    return probe, right


def read_later(
    x: Float[Tensor, "token d"], every: AllTokens, others: bool = False
) -> dict[str, Bool[Tensor, " item"]]:
    """Is the residue of the eleventh to the twentieth member of each class read by a probe that is
    trained on the first ten of this class (of all `others` instead)? One answer for each member;
    classes without any are left out. Claim 2.10 where numbers are not single tokens: what the probe
    saw are plain places, and what it has to read are the same ones modulo 10."""
    residue, right = every.index % 10, {}
    for name in every.names if len(every.names) > 1 else ():
        own = every.of(name)
        later = own & (every.index > 10) & (every.index <= 20)
        if later.any():
            train = (~own if others else own) & (every.index <= 10)
            weight, bias = train_probe(x[train], residue[train])
            right[name] = (x[later] @ weight.T + bias).argmax(-1).cpu() == residue[later]
    return right


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


def r2_interval(r2: float, n: int) -> tuple[float, float]:
    """95% interval of the share of variance that two regressors explain, of n values: those shares
    for which the F that was measured is neither among the smallest nor among the largest 2.5% (F
    is noncentral). The power at one period is such a share, of a cosine and a sine. An F below what
    half of unrelated values give is treated like that one, so that the interval has a width."""
    if r2 >= 1 - ROUNDING:
        return 1 - ROUNDING, 1.0
    f = max(r2 / 2 / ((1 - r2) / (n - 3)), float(stats.f.median(2, n - 3)))

    def at(level: float) -> float:
        def beyond(share: float) -> float:
            below = stats.ncf.cdf(f, 2, n - 3, n * share / (1 - share))
            return float(np.nan_to_num(below)) - level  # scipy has no number where it is nearly 0

        return float(optimize.brentq(beyond, 0.0, 1 - 1e-6)) if beyond(0.0) > 0 else 0.0

    return at(0.975), at(0.025)


@dataclass(frozen=True)
class Periodic:
    """Shares of power at period 10, in the decades that did not choose the neuron."""

    power: Float[Tensor, " neuron"]
    best: int  # the neuron with the largest share in the other decades
    n: int  # numbers in these decades
    null: Null  # the best of all neurons, the numbers permuted

    @property
    def numbers(self) -> dict[str, object]:
        """What claim 2.11 is decided by."""
        share, line = float(self.power[self.best]), self.null.asdict()["q95"]
        value = Estimate(share, *r2_interval(share, self.n), self.n)
        return {"value": value, "null": self.null, "neurons": int((self.power > line).sum())}


def periodic(activation: Float[Tensor, "neuron n"], generator: np.random.Generator) -> Periodic:
    """Choose the neuron of period 10 on every other decade, look at all neurons in the rest."""
    decade = torch.arange(activation.shape[-1]) // 10
    chooses, reports = (activation[:, decade % 2 == which] for which in (0, 1))
    best, null = int(period_power(chooses).argmax()), Null(period_null(reports, generator))
    return Periodic(period_power(reports), best, reports.shape[-1], null)
