"""Heads as knobs: outcomes under many heads and factors, the best factor, random heads to compare.

What a head does when it is scaled at every position is read at END by the first token, which takes
one forward pass from the head's layer on; greedy continuations are for the few settings that are
reported (`replib.generation`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.errors import UsageError
from replib.interventions import Head, HeadEdit, Network, read, scale_head
from replib.prompts import PromptPairs


@dataclass(frozen=True)
class Outcomes:
    """Which candidate is the most probable next token; neither: another token is.

    With the candidates of `facts.conflict_pairs`: `answer` is the memorised answer's first token,
    `foil` the in-context one's. The first axis counts the edits.
    """

    answer: Bool[Tensor, "edit prompt"]
    foil: Bool[Tensor, "edit prompt"]

    def share(self, wanted: str) -> Float[Tensor, " edit"]:
        """Share of prompts with the outcome `wanted`: memorised, in-context or other."""
        if wanted not in (known := ("memorised", "in-context", "other")):
            raise UsageError(f"outcome {wanted!r} is not known; choose one of: {', '.join(known)}")
        other = ~(self.answer | self.foil)
        mask = {"memorised": self.answer, "in-context": self.foil, "other": other}[wanted]
        return mask.double().mean(-1)


def first_token_outcomes(
    net: Network, pairs: PromptPairs, edits: Sequence[HeadEdit] = (HeadEdit(),)
) -> Outcomes:
    """Outcomes at END by the first token; the edits act at every position."""
    top1 = read(net, pairs, edits, everywhere=True, full_vocabulary=True).top1
    return Outcomes(answer=top1 == pairs.answer, foil=top1 == pairs.foil)


def scaling_curves(
    net: Network, pairs: PromptPairs, heads: Sequence[Head], alphas: Sequence[float]
) -> dict[Head, Outcomes]:
    """For each head, the outcomes with its output times each of `alphas` at every position."""
    layers = sorted({layer for layer, _ in heads})
    curves: dict[Head, Outcomes] = {}
    for layer in layers:  # heads of a layer go together: the work below it is not done again
        some = [head for head in heads if head[0] == layer]
        edits = [scale_head(head, alpha) for head in some for alpha in alphas]
        found = first_token_outcomes(net, pairs, edits)
        for i, head in enumerate(some):
            rows = slice(i * len(alphas), (i + 1) * len(alphas))
            curves[head] = Outcomes(found.answer[rows], found.foil[rows])
    return curves


def best_alpha(share: Float[Tensor, " alpha"], alphas: Sequence[float]) -> int:
    """Index of the factor with the largest share of what is wanted; of equals, the nearest to 1."""
    order = sorted(range(len(alphas)), key=lambda i: (-float(share[i]), abs(alphas[i] - 1)))
    return order[0]


def matched_heads(
    net: Network, like: Head, n: int, exclude: set[Head], generator: np.random.Generator
) -> list[Head]:
    """`n` random heads of the layer of `like`, or of the nearest layers once it has no more.

    Fewer if the model has no more heads. None of `exclude`.
    """
    others = [head for head in net.heads() if head not in exclude and head != like]
    order: Int[np.ndarray, " head"] = generator.permutation(len(others))
    shuffled = [others[i] for i in order]
    return sorted(shuffled, key=lambda head: abs(head[0] - like[0]))[:n]


def per_group(
    values: Float[Tensor, "*rest prompt"], groups: Sequence[str]
) -> Float[Tensor, "*rest group"]:
    """Means over the prompts of each group, groups in the order of their first prompt."""
    names = list(dict.fromkeys(groups))
    member = torch.tensor([names.index(group) for group in groups], device=values.device)
    one_hot = torch.nn.functional.one_hot(member, len(names)).to(values)
    return values @ (one_hot / one_hot.sum(0))
