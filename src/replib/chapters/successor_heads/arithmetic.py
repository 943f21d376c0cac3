"""Vector arithmetic on the output of MLP0 (Gould et al., arXiv 2312.09230, Sec. 3.4): one residue's
feature exchanged for another's, beside random directions of the same lengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from replib.chapters.successor_heads.ordinals import AllTokens, OrdinalClass
from replib.metrics import Estimate, Null, proportion, rng
from replib.models.finite import check_logits


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
    zero = torch.zeros_like(x[0])
    return torch.stack(
        [centred[residue == r].mean(0) if (residue == r).any() else zero for r in range(10)]
    )


def follows(
    said: Float[Tensor, "item target item"], ordinal: OrdinalClass
) -> Float[Tensor, "item target"]:
    """Do these logits of a class say the successor of the target residue? 1 if the winner within
    the class has the residue after the target's, 0 if not, NaN for the token's own residue and for
    residues that no token of the class follows. Raises UsageError for logits that are not finite.
    """
    check_logits(said, "the logits after an exchange of features")
    residue, target = ordinal.index % 10, torch.arange(10)
    success = (residue[said.argmax(-1).cpu()] == (target + 1) % 10).double()
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


def exchanged(success: Float[Tensor, " item"], random: Sequence[float]) -> Exchanged:
    """Of the success of each token (NaN: no target), and the mean success in each random draw."""
    return Exchanged(proportion(success[~success.isnan()]), Null(np.array(random)))


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

    other = (random_like(features, rng(seed, name, i)) for i in range(draws))
    null = [float(success(f).nanmean()) for f in other]
    return exchanged(success(features), null)


def mean_success(tested: Mapping[str, Exchanged]) -> float:
    """Mean over classes; NaN if there is none."""
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
