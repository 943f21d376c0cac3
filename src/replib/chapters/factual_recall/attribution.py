"""Which heads promote one of the two answers, and whether other prompts name the same ones.

A_h is a head's direct effect on the logit of the in-context answer less that on the memorised one
(Yu et al., 2310.15910, Sec. 5; generate_heads.py of the released code). Positive: the head promotes
the in-context answer; negative: the memorised one. Here it is found in two halves of the selection
split, which have no name in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.interventions.network import Head
from replib.metrics import head_label, max_statistic_pvalues, rng


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


def attention_to(
    pattern: Float[Tensor, "prompt layer head src"], src: Int[Tensor, " prompt"]
) -> Float[Tensor, "layer head"]:
    """How much each head attends to one position of each prompt, on average."""
    return pattern[torch.arange(len(src)), :, :, src].mean(0)


def heads_table(
    kinds: Mapping[str, Sequence[Head]],
    score: Float[Tensor, "layer head"],
    attention: Float[Tensor, "layer head"],
) -> pd.DataFrame:
    """A_h of the heads of each kind, and how much they attend to the stated answer."""
    rows = {
        (kind, head_label(head)): (float(score[head]), float(attention[head]))
        for kind, heads in kinds.items()
        for head in heads
    }
    return pd.DataFrame(rows, index=["A_h", "attention to the stated answer"]).T.round(2)


def names(kinds: Mapping[str, Sequence[Head]]) -> str:
    """The heads of each kind in words."""
    return "; ".join(f"{kind}: {', '.join(map(head_label, some))}" for kind, some in kinds.items())


@dataclass(frozen=True)
class Replication:
    """The strongest head of one kind in half A, and what half B says of it."""

    head: Head
    a: float  # A_h in each half, in logits
    b: float
    p_a: float
    p_b: float
    found_again: bool  # among the three strongest of half B; sign and p < 0.05 in both halves

    def numbers(self, kind: str) -> dict[str, float]:
        """By the names under which a record has them."""
        numbers = {"a": self.a, "b": self.b, "p_a": self.p_a, "p_b": self.p_b}
        return {f"{kind}_{name}": x for name, x in numbers.items()}

    def row(self) -> dict[str, str | bool]:
        """As a row of a table."""
        row: dict[str, str | bool] = {"strongest in A": head_label(self.head)}
        row |= {"A_h in A": f"{self.a:+.2f}", "A_h in B": f"{self.b:+.2f}"}
        row |= {"p in A": f"{self.p_a:.3f}", "p in B": f"{self.p_b:.3f}"}
        return row | {"found again": self.found_again}


@dataclass(frozen=True)
class Halves:
    """A_h in both halves of the selection split, and how often chance alone would do as much."""

    effect: tuple[Float[Tensor, "layer head _country"], ...]  # means over a country's prompts
    p_value: tuple[Float[Tensor, "layer head"], ...]  # family-wise, over all heads

    @classmethod
    def compare(cls, effect: Sequence[Float[Tensor, "layer head _country"]], seed: int) -> "Halves":
        """With p-values of `metrics.max_statistic_pvalues`: the labels memorised and in-context are
        swapped for whole countries, which turns the sign of A_h, and the strongest head of each
        draw is compared."""
        p_value = [max_statistic_pvalues(e, rng(seed, "swap", i)) for i, e in enumerate(effect)]
        return cls(tuple(effect), tuple(p_value))

    def fewest(self) -> int:
        """Countries in the smaller half."""
        return min(effect.shape[-1] for effect in self.effect)

    def maps(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Mean A_h by the name of each half."""
        return {
            f"half {name} ({effect.shape[-1]} countries)": effect.mean(-1)
            for name, effect in zip("AB", self.effect, strict=True)
        }

    def mean(self, half: int) -> Float[Tensor, "layer head"]:
        return self.effect[half].mean(-1)

    def agree(self, head: Head, sign: int) -> bool:
        """Has the head this sign in both halves, with p < 0.05 in both?"""
        signs = (sign * self.mean(half)[head] > 0 for half in range(2))
        return bool(all(signs) and all(p[head] < 0.05 for p in self.p_value))

    def agreed(self, heads: Sequence[Head], sign: int) -> list[Head]:
        """Those of the heads for which both halves `agree`."""
        return [head for head in heads if self.agree(head, sign)]

    def replication(self, sign: int) -> Replication:
        """The strongest head of the first half, looked up in the second one."""
        head = strongest(self.mean(0), sign, 1)[0]
        among = head in strongest(self.mean(1), sign)
        a, b = (float(self.mean(half)[head]) for half in range(2))
        p_a, p_b = (float(p[head]) for p in self.p_value)
        return Replication(head, a, b, p_a, p_b, among and self.agree(head, sign))
