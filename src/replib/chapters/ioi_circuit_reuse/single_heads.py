"""Every head of the model forced alone, and rank correlations over heads.

Merullo et al. (2310.08744, Sec. 5) edit the heads that IOI names. Whether those are the heads that
can repair Colored Objects is seen only if every other head is forced as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from replib import figures, metrics
from replib.chapters.ioi_circuit_reuse.circuit import halves, head_names
from replib.figures import Picture
from replib.interventions.head_edits import attention_row, read
from replib.interventions.network import Head, Network
from replib.metrics import Estimate, Null, rng
from replib.prompts.pairs import PromptPairs

# Layers whose heads are forced side by side: all of them begin at the lowest one.
AT_ONCE = 4


def margin(logits: Float[Tensor, "*edit prompt token"]) -> Float[Tensor, "*edit prompt"]:
    """The logit of the right colour, the first candidate, less the mean of the wrong ones."""
    return logits[..., 0] - logits[..., 1:].mean(-1)


def forced_alone(
    net: Network, prompts: PromptPairs, row: Float[Tensor, "prompt src"]
) -> Float[Tensor, "layer head prompt"]:
    """What is gained if one head, and no other, attends from END as `row` says: each prompt's
    margin of the right colour over the wrong ones, less that without an edit."""
    before, forced = margin(read(net, prompts).logits[0]), []
    heads = net.heads()
    step = AT_ONCE * net.n_heads
    for start in range(0, len(heads), step):
        edits = [attention_row([head], row) for head in heads[start : start + step]]
        forced.append(margin(read(net, prompts, edits).logits))
    gain = torch.cat(forced) - before
    return gain.unflatten(0, (net.n_layers, net.n_heads))


@dataclass(frozen=True)
class Best:
    """The head that gains most on one half of the prompts, on the other half."""

    head: Head
    gain: Estimate
    p: float  # of so large a |t| in the best of all heads, by chance


def best_alone(gain: Float[Tensor, "layer head prompt"], groups: Sequence[str], seed: int) -> Best:
    """Choose a head on the selection half, and measure it on the report half against the largest
    statistic over *all* heads. `groups` names the template of each prompt."""
    chosen, report = halves(gain)
    at = int(chosen.mean(-1).argmax())
    head = divmod(at, gain.shape[1])
    p = metrics.max_statistic_pvalues(report, rng(seed, "alone"))
    groups, draws = groups[-report.shape[-1] :], rng(seed, "best alone")
    return Best(head, metrics.bootstrap(report[head], groups, draws), float(p[head]))


def rank_correlation(
    a: Float[Tensor, " head"],
    b: Float[Tensor, " head"],
    generator: np.random.Generator,
    layers: Sequence[int] | None = None,
    draws: int = 2000,
) -> tuple[Estimate, Null]:
    """Spearman's correlation over heads, its 95% interval (Fisher's z of the ranks), and the null
    in which the values of `b` are dealt out anew: among all heads, or, with the `layers` of the
    heads, among those of each layer, so that depth alone cannot make it. NaN if all values of one
    are equal."""
    x, y = (stats.rankdata(t.double().numpy(force=True)) for t in (a, b))
    if min(np.ptp(x), np.ptp(y)) == 0 or len(x) < 4:
        nothing = Estimate(np.nan, np.nan, np.nan, len(x))
        return nothing, Null(np.zeros(draws))
    layer = np.zeros(len(x)) if layers is None else np.asarray(layers)
    order = np.argsort(layer, kind="stable")
    # Random numbers sorted within each layer: a permutation of its heads.
    keys = generator.random((draws, len(x))) + layer[order]
    dealt = np.empty((draws, len(x)))
    dealt[:, order] = y[order][np.argsort(keys, axis=1)]
    x_from = (x - x.mean()) / (x.std() * y.std() * len(x))
    found = stats.pearsonr(x, y)
    ends = found.confidence_interval(0.95)
    rho = Estimate(float(found.statistic), float(ends.low), float(ends.high), len(x))
    return rho, Null((dealt - y.mean()) @ x_from)


def tie(
    in_ioi: Float[Tensor, "layer head"], alone: Float[Tensor, "layer head"], seed: int
) -> tuple[Estimate, float]:
    """Rank correlation over all heads of the direct effect on the attended name in IOI with the
    gain of the head forced alone in Colored Objects; and how often chance, dealing the gains out
    anew within each layer, makes one as far below 0: heads that lower what they attend to should
    help when they attend to the wrong colours."""
    layers = torch.arange(len(alone)).repeat_interleave(alone.shape[1]).tolist()
    x, y = in_ioi.flatten(), alone.flatten()
    rho, null = rank_correlation(x, y, rng(seed, "tie"), layers)
    return rho, Null(-null.draws).pvalue(-rho.value)


def tie_picture(in_ioi: Float[Tensor, "layer head"], alone: Float[Tensor, "layer head"]) -> Picture:
    """A point a head: its direct effect on the attended name in IOI, and what it gains alone."""
    n_layers, n_heads = alone.shape
    names = [head_names([(a, b)]) for a in range(n_layers) for b in range(n_heads)]
    axes = ("IOI: direct effect on the attended name (logits)", "gain alone (logits)")
    return figures.scatter(in_ioi.flatten(), alone.flatten(), names, *axes)
