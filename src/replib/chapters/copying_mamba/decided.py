"""The numbers of each claim, from what the networks of all seeds did: a function a claim, whose
result is what `Claims.measure` is given.

Seeds either learn a task or do not, so nothing is averaged over the two kinds: how many learnt is a
gate of its own, and what is compared are the seeds that did.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from replib import metrics
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.survival import Arrivals, factor
from replib.chapters.copying_mamba.training_grid import BATCH, EVERY

TRAINED_TO = 20  # letters
INSIDE, BEYOND = 30, 60  # letters of a lookup: the longest of training, and twice as many
BOOKS = (4, 8, 12, 16)  # entries
ENOUGH = 3  # seeds of five that have to learn a task before an architecture is compared
Measured = dict[str, Any]


def _few(n: Mapping[str, int]) -> Measured:
    """What a claim is given where too few seeds learnt: the reason instead of a value."""
    said = ", ".join(f"{count} of {name.removesuffix('_learnt')}" for name, count in n.items())
    return {"value": None, "otherwise": f"seeds that learnt the task: {said}; {ENOUGH} are needed"}


def state_bits(
    bits: Sequence[int], reach: Float[np.ndarray, "seed bits"], full: Float[np.ndarray, " seed"]
) -> Measured:
    """5.1: by how many letters L50 rises when the state at `|` gets twice as many bits: the slope
    over the logarithm of bits of each seed that reaches 10 letters with its whole state, `full`."""
    learnt = full >= 10
    numbers: Measured = {"learnt": int(learnt.sum())}
    if numbers["learnt"] < ENOUGH:
        return _few({"Mamba-2_learnt": numbers["learnt"]})
    numbers["most_of_bound"] = float(np.max(reach * np.log2(26) / np.array(bits)))
    slopes = [stats.linregress(np.log2(bits), row).slope for row in reach[learnt]]
    numbers |= {"fewest": reach[learnt, 0].mean(), "most": reach[learnt, -1].mean()}
    return {"value": metrics.seeds_mean(slopes), "full": full[learnt].mean(), **numbers}


def efficiency(transformer: Arrivals, ssm: Arrivals, budget: int) -> Measured:
    """5.2: examples that the state-space model needs as a multiple of the Transformer's. `budget`:
    the examples that a seed of the former could see."""
    return {
        "value": factor(ssm, transformer),
        "transformer_reached": transformer.n_arrived,
        "ssm_reached": ssm.n_arrived,
        "budget": budget / transformer.median,
        "transformer_examples": transformer.median,
        "first_point": float(BATCH * EVERY),
    }


def lstm(test: ByLength, ssm: str) -> Measured:
    """5.3: L50 of the better state-space model, of the seeds that learnt, less that of the LSTM."""
    learnt = test.learnt(ssm, TRAINED_TO)
    numbers: Measured = {"ssm_learnt": int(learnt.sum()), "short": test.mean("lstm", 5)}
    reach = test.reach("lstm")
    numbers |= {"lstm_reach": reach.mean(), "longest": test.lengths[-1]}
    if numbers["ssm_learnt"] < ENOUGH:
        return _few({f"{ssm}_learnt": numbers["ssm_learnt"]})
    ours = test.reach(ssm)[learnt]
    return {"value": metrics.seeds_difference(ours, reach), "ssm_reach": ours.mean(), **numbers}


def generalisation(test: ByLength, other: str, ssm: str) -> Measured:
    """5.4: L50 of Hard-ALiBi less that of another Transformer, and that less the state-space
    model's, of the seeds that learnt to copy 20 letters."""
    names = {"hard_alibi": "hard-alibi", "transformer": other, "ssm": ssm}
    learnt = {key: test.learnt(name, TRAINED_TO) for key, name in names.items()}
    numbers: Measured = {f"{key}_learnt": int(some.sum()) for key, some in learnt.items()}
    numbers["longest"] = test.lengths[-1]
    if min(int(some.sum()) for some in learnt.values()) < ENOUGH:
        return _few({names[key]: int(some.sum()) for key, some in learnt.items()})
    reach = {key: test.reach(name)[learnt[key]] for key, name in names.items()}
    numbers |= {f"{key}_reach": some.mean() for key, some in reach.items()}
    numbers["others"] = metrics.seeds_difference(reach["transformer"], reach["ssm"])
    numbers["ssm_factor"] = metrics.seeds_mean(reach["ssm"] / TRAINED_TO)
    lead = metrics.seeds_difference(reach["hard_alibi"], reach["transformer"])
    return {"value": lead, **numbers}


def ngram_lookup(
    runs: Sequence[int],
    right: Float[np.ndarray, "seed run"],
    control: Float[np.ndarray, "seed run"],
) -> Measured:
    """5.5: accuracy after the shortest run that occurs twice less that after the longest, of the
    seeds that learnt to copy (rows); `control` is of ALiBi, which copies by position."""
    numbers: Measured = {"learnt": len(right)}
    if len(right) < ENOUGH:
        return _few({"hard-alibi": len(right)})
    mean = right.mean(0)
    trend = float(stats.spearmanr(runs, mean).statistic) if np.ptp(mean) > 0 else 0.0
    numbers |= {"shortest": mean[0], "longest": mean[-1], "trend": trend}
    falls = np.flatnonzero(mean < (mean[0] + mean[-1]) / 2)
    numbers["breaks_at"] = runs[int(falls[0])] if len(falls) else runs[-1] + 1
    numbers["control_drop"] = (control[:, 0] - control[:, -1]).mean() if len(control) else 0.0
    return {"value": metrics.seeds_mean(right[:, 0] - right[:, -1]), **numbers}


def suffix_lookup(after: ByLength) -> Measured:
    """5.6: which share of the accuracy with 30 letters is left with 60: the Transformer's less the
    state-space model's, of the seeds that learnt the lookup that is asked afterwards."""
    names = {"transformer": "hard-alibi", "ssm": "mamba2"}
    learnt = {key: after.learnt(name, INSIDE) for key, name in names.items()}
    numbers: Measured = {f"{key}_learnt": int(some.sum()) for key, some in learnt.items()}
    if min(numbers.values()) < ENOUGH:
        return _few({names[key]: int(some.sum()) for key, some in learnt.items()})
    kept = {
        key: np.minimum(1, after.at(name, BEYOND) / after.at(name, INSIDE).clip(1e-9))[learnt[key]]
        for key, name in names.items()
    }
    numbers |= {f"{key}_kept": metrics.seeds_mean(x, share=True) for key, x in kept.items()}
    lead = metrics.seeds_difference(kept["transformer"], kept["ssm"], share=True)
    return {"value": lead, **numbers}


def prefix_and_suffix(before: ByLength, after: ByLength) -> Measured:
    """5.7: the Transformer's lead with 60 letters when the question comes after the string, less
    its lead when it comes before."""
    transformer, ssm = "hard-alibi", "mamba2"
    late = after.at(transformer, BEYOND) - after.at(ssm, BEYOND)
    early = before.at(transformer, BEYOND) - before.at(ssm, BEYOND)
    return {
        "value": metrics.seeds_mean(late - early),
        "lead_after": after.lead(transformer, ssm, BEYOND),
        "lead_before": before.lead(transformer, ssm, BEYOND),
        "before": min(before.mean(name, BEYOND).value for name in (transformer, ssm)),
        "after": after.mean(transformer, BEYOND).value,
        "over_nope": before.lead(ssm, "nope", BEYOND),
    }


def hybrid(test: ByLength) -> Measured:
    """5.13: numbers found, mean over books of 4 to 16 entries: the hybrid less the Transformer, and
    the hybrid less Mamba-2."""
    names = {"transformer": "hard-alibi", "ssm": "mamba2", "hybrid": "hybrid"}
    means = {key: test.mean(name, *BOOKS).value for key, name in names.items()}
    return {
        "value": test.lead("hybrid", "hard-alibi", *BOOKS),
        "hybrid_ssm": test.lead("hybrid", "mamba2", *BOOKS),
        **means,
    }
