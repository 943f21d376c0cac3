"""What the output of MLP0 is made of: index and domain, sparse features, probes, periods.

The analyses of Gould et al. (arXiv 2312.09230, Sec. 3) on one vector for each ordinal token. Every
one comes with its control: shuffled indices, permuted residues, other moduli, random features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.chapters.successor_heads.ordinals import OrdinalClass
from replib.chapters.successor_heads.ov_circuit import ov_writes
from replib.errors import UsageError
from replib.interventions.network import Head, Network
from replib.models.device import one_thread
from replib.models.finite import check_logits

MODULI = (7, 8, 9, 10, 11, 12)
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


# --- Index and domain (Sec. 3.1) ------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The held-out tokens, rebuilt. `near` is the item nearest to each rebuilt vector."""

    target: Int[Tensor, " case"]
    near: Int[Tensor, " case"]


def split_index_domain(
    x: Float[Tensor, "item d"],
    index: Int[Tensor, " item"],
    domain: Int[Tensor, " item"],
    held_out: Tensor,
    generator: np.random.Generator,
    new_domain: int | None = None,
    rank: int = 40,
    per_target: int = 10,
) -> Split:
    """Fit maps pi_N, pi_D with x(i, d) ≈ pi_N x(i, d') + pi_D x(i', d), rebuild held-out tokens.

    `held_out` tokens are neither targets nor sources of the fit. `new_domain`: a class that no map
    has seen; its tokens are the targets, and give each other the domain part. A vector is decoded
    as the token nearest to it (cosine), among all tokens, or those of the new domain.
    """
    n, d, train = index.numpy(), domain.numpy(), (~held_out).numpy()
    if new_domain is not None:
        train &= d != new_domain
    y = principal(x.double(), min(rank, int(train.sum()) // 2), torch.from_numpy(train))

    def cases(targets: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Rows (target, an item of the fit of another domain with its index, an `own` item of its
        domain with another index)."""
        rows = []
        for t in targets:
            same_index = np.flatnonzero(train & (n == n[t]) & (d != d[t]))
            same_domain = np.flatnonzero(own & (d == d[t]) & (n != n[t]))
            if len(same_index) and len(same_domain):
                a = generator.choice(same_index, per_target)
                b = generator.choice(same_domain, per_target)
                rows += [(t, i, j) for i, j in zip(a, b, strict=True)]
        return np.array(rows, dtype=int).reshape(-1, 3)

    fit = cases(np.flatnonzero(train), train)
    if not len(fit):
        raise UsageError("index and domain: no two classes have an index in common")
    inputs = torch.cat([y[fit[:, 1]], y[fit[:, 2]]], dim=-1)
    gram = inputs.T @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=y.dtype)
    maps = torch.linalg.solve(gram + ridge, inputs.T @ y[fit[:, 0]])
    own = train if new_domain is None else d == new_domain
    test = cases(np.flatnonzero(held_out.numpy() if new_domain is None else own), own)
    built = torch.cat([y[test[:, 1]], y[test[:, 2]]], dim=-1) @ maps
    unit = torch.nn.functional.normalize
    close = unit(built) @ unit(y).T
    if new_domain is not None:
        close[:, torch.from_numpy(~own)] = -2.0
    return Split(torch.from_numpy(test[:, 0]), close.argmax(-1))


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


def most_important(
    net: Network,
    head: Head,
    sae: Sae,
    items: Int[Tensor, " chosen"],
    successors: Int[Tensor, " chosen"],
) -> Int[np.ndarray, "seed chosen"]:
    """For some tokens, the feature whose removal lowers the successor's logit most (Sec. 3.2).
    Through the head's effective OV circuit with the input's norm held at its scale, in which a
    feature's part is its code times what the head makes of its direction."""
    layer, h = head
    effect = ov_writes(net, layer, sae.decoder, direction=True)[..., h, :]
    drop = torch.einsum("sif,sfm,im->sif", sae.codes[:, items], effect, net.W_U[successors])
    check_logits(drop, "what features add to the logits")
    return drop.argmax(-1).numpy()


# --- Vector arithmetic (Sec. 3.4) -----------------------------------------------------------------


def exchange(
    net: Network,
    head: Head,
    x: Float[Tensor, "item d_model"],
    ordinal: OrdinalClass,
    features: Float[Tensor, "10 d_model"],
    scale: float,
) -> Float[Tensor, "item target"]:
    """x − scale·f[own residue] + scale·f[target]: does the head then say the target's successor? 1
    if the winner within the class has the residue after the target's, 0 if not, NaN for the token's
    own residue and for residues that no token of the class follows."""
    layer, h = head
    residue, target = ordinal.index % 10, torch.arange(10)
    moved = x[:, None] - scale * features[residue][:, None] + scale * features[None]
    writes = ov_writes(net, layer, moved)[..., h, :]
    said = torch.einsum("itm,vm->itv", writes, net.W_U[ordinal.tokens])
    check_logits(said, "the logits after an exchange of features")
    winner = said.argmax(-1)
    success = (residue[winner] == (target + 1) % 10).double()
    success[torch.arange(len(x)), residue] = torch.nan
    success[:, ~torch.isin((target + 1) % 10, residue)] = torch.nan
    return success


def tuned_exchange(
    net: Network,
    head: Head,
    x: Float[Tensor, "item d_model"],
    ordinal: OrdinalClass,
    features: Float[Tensor, "10 d_model"],
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
) -> tuple[float, Float[Tensor, " item"]]:
    """The scale that works best on every other token (0, 2, ...), and with it the success of the
    tokens in between."""
    results = [exchange(net, head, x, ordinal, features, scale) for scale in scales]
    tuned = [float(result[0::2].nanmean().nan_to_num(0.0)) for result in results]
    best = int(np.argmax(tuned))
    return scales[best], results[best][1::2].nanmean(-1)


def random_like(
    features: Float[Tensor, "10 d_model"], generator: np.random.Generator
) -> Float[Tensor, "10 d_model"]:
    """Random directions of the same lengths."""
    drawn = torch.from_numpy(generator.standard_normal(tuple(features.shape))).to(features)
    return torch.nn.functional.normalize(drawn, dim=-1) * features.norm(dim=-1, keepdim=True)
