"""Which heads promote one of the two answers, and whether other prompts name the same ones.

A_h is a head's direct effect on the logit of the in-context answer less that on the memorised one
(Yu et al., 2310.15910, Sec. 5; generate_heads.py of the released code). Positive: the head promotes
the in-context answer; negative: the memorised one. Here it is found in two halves of the selection
split, which have no name in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replib.interventions.network import Head


def per_group(
    values: Float[Tensor, "*rest prompt"], groups: Sequence[str]
) -> Float[Tensor, "*rest group"]:
    """Means over the prompts of each group, groups in the order of their first prompt."""
    names = list(dict.fromkeys(groups))
    member = torch.tensor([names.index(group) for group in groups], device=values.device)
    one_hot = torch.nn.functional.one_hot(member, len(names)).to(values)
    return values @ (one_hot / one_hot.sum(0))


def strongest(score: Float[Tensor, "layer head"], sign: int, k: int = 3) -> list[Head]:
    """The k heads that promote one answer most: sign +1 the in-context one, −1 the memorised."""
    order = (sign * score).flatten().argsort(descending=True)[:k].tolist()
    return [divmod(i, score.shape[1]) for i in order]


@dataclass(frozen=True)
class Replication:
    """The strongest head of one kind in half A, and what half B says of it."""

    head: Head
    a: float  # A_h in each half, in logits
    b: float
    p_a: float
    p_b: float
    found_again: bool  # among the three strongest of half B; sign and p < 0.05 in both halves

    def numbers(self) -> dict[str, float]:
        return {"a": self.a, "b": self.b, "p_a": self.p_a, "p_b": self.p_b}


@dataclass(frozen=True)
class Halves:
    """A_h in both halves of the selection split, and how often chance alone would do as much."""

    effect: tuple[Float[Tensor, "layer head country"], ...]  # means over a country's prompts
    p_value: tuple[Float[Tensor, "layer head"], ...]  # family-wise, over all heads

    def mean(self, half: int) -> Float[Tensor, "layer head"]:
        return self.effect[half].mean(-1)

    def agree(self, head: Head, sign: int) -> bool:
        """Has the head this sign in both halves, with p < 0.05 in both?"""
        signs = (sign * self.mean(half)[head] > 0 for half in range(2))
        return bool(all(signs) and all(p[head] < 0.05 for p in self.p_value))

    def replication(self, sign: int) -> Replication:
        """The strongest head of the first half, looked up in the second one."""
        head = strongest(self.mean(0), sign, 1)[0]
        among = head in strongest(self.mean(1), sign)
        a, b = (float(self.mean(half)[head]) for half in range(2))
        p_a, p_b = (float(p[head]) for p in self.p_value)
        return Replication(head, a, b, p_a, p_b, among and self.agree(head, sign))
