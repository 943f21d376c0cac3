"""Which heads promote one of the two answers, and whether other prompts name the same ones.

A_h is a head's direct effect on the logit of the in-context answer less that on the memorised one
(Yu et al., 2310.15910, Sec. 5; generate_heads.py of the released code). Positive: the head promotes
the in-context answer; negative: the memorised one. Here it is found in two halves of the selection
split, which have no name in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from replib.chapters.factual_recall.facts import Conflict
from replib.interventions.network import Head
from replib.metrics import Estimate, bootstrap, head_label, max_statistic_pvalues, rng
from replib.prompts.pairs import PromptPairs

# The sign of A_h of a head that speaks for memory or for the context.
SIGN = {"memory": -1, "in-context": +1}
_TEST = "among the three strongest, with p < 0.05, in both halves; on the report split it "
RULES = {
    "memory": f"{_TEST}raises the memorised answer against unrelated ones",
    "in-context": f"{_TEST}raises the stated answer against unrelated ones",
    "suppressing": f"{_TEST}lowers both answers against unrelated ones",
}


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
    """A head that is among the three strongest of one kind in either half."""

    head: Head
    a: float  # A_h in each half, in logits
    b: float
    p_a: float
    p_b: float
    found_again: bool  # among the three strongest in both halves; p < 0.05 in both

    def row(self) -> dict[str, str | bool]:
        """As a row of a table."""
        row: dict[str, str | bool] = {"A_h in A": f"{self.a:+.2f}", "A_h in B": f"{self.b:+.2f}"}
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

    def maps(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Mean A_h by the name of each half."""
        return {
            f"half {name} ({effect.shape[-1]} subjects)": effect.mean(-1)
            for name, effect in zip("AB", self.effect, strict=True)
        }

    def replications(self, sign: int) -> list[Replication]:
        """The three strongest heads of one kind in the first half, then those that only the second
        half has among its three (generate_heads.py of the released code keeps three)."""
        mean = [effect.mean(-1) for effect in self.effect]
        top = [strongest(m, sign) for m in mean]
        found = []
        for head in dict.fromkeys(top[0] + top[1]):
            a, b = (float(m[head]) for m in mean)
            p_a, p_b = (float(p[head]) for p in self.p_value)
            again = head in top[0] and head in top[1] and max(p_a, p_b) < 0.05
            again = again and min(sign * a, sign * b) > 0
            found.append(Replication(head, a, b, p_a, p_b, again))
        return found

    def found(self) -> dict[str, list[Head]]:
        """All heads of each kind that both halves name, the strongest of the first half first."""
        return {
            kind: [one.head for one in self.replications(sign) if one.found_again]
            for kind, sign in SIGN.items()
        }

    def table(self) -> pd.DataFrame:
        """The replications of both kinds."""
        rows = {
            (kind, head_label(one.head)): one.row()
            for kind, sign in SIGN.items()
            for one in self.replications(sign)
        }
        return pd.DataFrame(rows).T

    def numbers(self) -> dict[str, float | int]:
        """What claim 3.4 is measured by: how many kinds have a head, how many heads each kind has,
        how strong any could be, and the countries of the smaller half."""
        found = self.found()
        numbers: dict[str, float | int] = {"value": sum(map(bool, found.values()))}
        for kind, sign in SIGN.items():
            name = kind.replace("-", "_")
            numbers |= {f"{name}_found": len(found[kind]), f"{name}_most": self.most(sign)}
        return numbers | {"half": min(effect.shape[-1] for effect in self.effect)}

    def most(self, sign: int) -> float:
        """How strong any head of one kind can be: the largest upper end of all heads' 95% intervals
        of their mean over the countries of both halves, simultaneous over heads (Bonferroni)."""
        effect = sign * torch.cat(self.effect, dim=-1).double()
        n_heads, n = effect[..., 0].numel(), effect.shape[-1]
        far = float(stats.t.ppf(1 - 0.025 / n_heads, n - 1))
        return float((effect.mean(-1) + far * effect.std(-1) / n**0.5).max())


# --- What a head raises, against answers that have nothing to do with the prompt -----------------


def with_unrelated(
    pairs: PromptPairs, conflicts: Sequence[Conflict], seed: int, n: int = 3
) -> PromptPairs:
    """The same prompts with `n` more candidates each: first tokens of true answers to other prompts
    of the same relation. Where these are none (yes and no), tokens of the prompt itself."""
    relations = [conflict.fact.relation for conflict in conflicts]
    generator = rng(seed, "unrelated")
    answers: dict[str, set[int]] = {}
    for relation, answer in zip(relations, pairs.answer.tolist(), strict=True):
        answers.setdefault(relation, set()).add(answer)
    rows = []
    for i, relation in enumerate(relations):
        own = {int(pairs.answer[i]), int(pairs.foil[i])}
        prompt = pairs.clean[i, : int(pairs.length[i])].tolist()
        pool = sorted(answers[relation] - own) or sorted(set(prompt) - own)
        rows.append(generator.choice(pool, size=n).tolist())
    both = torch.stack([pairs.answer, pairs.foil], dim=-1)
    return replace(pairs, candidates=torch.cat([both, torch.tensor(rows).to(both)], dim=-1))


@dataclass(frozen=True)
class Raised:
    """How far a head raises either answer's logit against unrelated ones, directly."""

    memorised: Estimate
    in_context: Estimate

    def label(self, sign: int) -> str:
        """What a head of this sign of A_h is called: by the token that it raises, or `suppressing`
        if it lowers both, or nothing at all."""
        own, name = (self.memorised, "memory") if sign < 0 else (self.in_context, "in-context")
        if own.low > 0:
            return name
        lowers = self.memorised.high < 0 and self.in_context.high < 0
        return "suppressing" if lowers else ""


def raised(
    direct: Float[Tensor, "prompt layer head token"],
    groups: Sequence[str],
    head: Head,
    seed: int,
) -> Raised:
    """For one head, from its direct effects on the candidates of `with_unrelated`; means over the
    prompts of each group, whose intervals count groups."""
    of_head = direct[:, head[0], head[1]]  # prompt token
    against = of_head[:, :2] - of_head[:, 2:].mean(-1, keepdim=True)
    names = list(dict.fromkeys(groups))
    generator = rng(seed, "raised", *head)
    ends = [bootstrap(x, names, generator) for x in per_group(against.T, groups)]
    return Raised(*ends)


def called(
    direct: Float[Tensor, "prompt layer head token"],
    groups: Sequence[str],
    found: Mapping[str, Sequence[Head]],
    seed: int,
) -> tuple[dict[str, list[Head]], pd.DataFrame]:
    """The heads by what they are called (`Raised.label`), and a table of why. `found`: heads by
    their kind; `direct`: as in `raised`."""
    by_label: dict[str, list[Head]] = {name: [] for name in RULES}
    rows = {}
    for kind, head in ((kind, head) for kind, heads in found.items() for head in heads):
        one = raised(direct, groups, head, seed)
        label = one.label(SIGN[kind])
        if label:
            by_label[label].append(head)
        ends = {"raises the memorised": one.memorised, "raises the in-context": one.in_context}
        row = {name: f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]" for name, e in ends.items()}
        rows[head_label(head)] = row | {"called": label or "neither"}
    return by_label, pd.DataFrame(rows).T
