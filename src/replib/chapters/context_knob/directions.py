"""Directions in which the two intents differ (Minder et al., 2411.07404, Sec. 6): what they are got
from, and the plain ways to get one. The learned one is `steering.learn_direction`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob import steering
from replib.chapters.context_knob.asking import answer_tokens, prompts_of
from replib.chapters.context_knob.intents import Case
from replib.interventions.generation import Prefilled


@dataclass(frozen=True)
class Opposites:
    """Cases read once under both intents. Rows are the kept cases under the context intent, then
    the same under memory's; the source of each row is the same case under the other intent."""

    cases: list[Case]
    prompts: Prefilled
    base: Int[Tensor, " row"]  # numbers of prompts
    source: Int[Tensor, " row"]
    token: Int[Tensor, " row"]  # first token of the source's answer
    states: Float[Tensor, "layer row d_model"]  # every layer's output at the last token

    @property
    def given(self) -> Float[Tensor, "layer row d_model"]:
        """Every layer's output in the source."""
        return self.states.roll(len(self.cases), 1)

    def logits(
        self, layer: int, change: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits of each row when a layer's output h at the last token becomes change(h, that of
        its source)."""
        given = self.given[layer]
        return steering.changed_logits(self.prompts, layer, change, self.base, given)

    @property
    def own_token(self) -> Int[Tensor, " row"]:
        """First token of the row's own answer."""
        return self.token.roll(len(self.cases))


def read_opposites(model: TransformerBridge, cases: Sequence[Case]) -> Opposites:
    """Keeps the cases whose first token is right under both intents; all, if there is none."""
    prompts, n = Prefilled(model, prompts_of(model.tokenizer, cases)), len(cases)
    token = answer_tokens(model.tokenizer, cases).flatten()
    said = prompts.step().argmax(-1).cpu()
    right = (said == token).unflatten(0, (2, n)).all(0)
    kept = (right if right.any() else ~right).nonzero()[:, 0]
    base, source = torch.cat([kept, n + kept]), torch.cat([n + kept, kept])
    states = steering.residuals(prompts, base).cpu()
    return Opposites([cases[i] for i in kept], prompts, base, source, token[source], states)


def mean_difference(h: Float[Tensor, "row d_model"]) -> Float[Tensor, " d_model"]:
    """Mean of the first half of the rows (context intent) less that of the second (memory's)."""
    context, prior = h.float().chunk(2)
    return context.mean(0) - prior.mean(0)


def ridge_probe(h: Float[Tensor, "row d_model"]) -> Float[Tensor, " d_model"]:
    """Weights of a linear probe for the intent: ridge regression of +1 (first half of the rows,
    context) and -1 on the centred h, the penalty a hundredth of the mean variance."""
    x = h.float() - h.float().mean(0)
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(len(x) // 2)
    gram = x.T @ x
    ridge = gram + 0.01 * gram.trace() / len(gram) * torch.eye(len(gram))
    return torch.linalg.solve(ridge, x.T @ sign)


def draws(
    rows: Opposites, n: int, seed: int
) -> tuple[Float[Tensor, "n d_model"], Int[Tensor, " row"]]:
    """n random directions; and for each row a target drawn by a coin, its source's answer or its
    own."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n, rows.states.shape[-1], generator=generator)
    coin = torch.rand(len(rows.token), generator=generator) < 0.5
    return random, torch.where(coin, rows.token, rows.own_token)


def learn(
    rows: Opposites, layer: int, targets: Int[Tensor, " row"], seed: int
) -> Float[Tensor, " d_model"]:
    """`steering.learn_direction`: the unit direction whose exchange makes the rows say targets."""
    return steering.learn_direction(
        rows.prompts, layer, rows.base, rows.source, targets, epochs=8, seed=seed
    )


@dataclass(frozen=True)
class Choice:
    """The layer whose learned direction turns most answers of the validation cases."""

    turned: Mapping[tuple[str, int], float]  # (cases, layer): share of answers that turn
    best: Sequence[int]  # the layers it is chosen from
    early: Sequence[int]  # one that should fail; none, if it is among the best

    @property
    def layer(self) -> int:
        return max(self.best, key=lambda at: self.turned["validation", at])

    def numbers(self, n_layers: int) -> dict[str, Any]:
        """For the record: the layer, what it does, and what the early one does to test cases."""
        return {
            "layer": self.layer,
            "training": self.turned["training", self.layer],
            "validation": self.turned["validation", self.layer],
            "wrong_layer": max(self.turned["test", at] for at in self.early or self.best[-1:]),
            "note": f"layer {self.layer} of {n_layers}",
        }

    def curves(self, n_layers: int) -> dict[str, list[float]]:
        """Share by layer for each kind of cases, NaN where no direction was learned."""
        return {
            f"learned, {name}": [self.turned.get((name, at), math.nan) for at in range(n_layers)]
            for name in dict.fromkeys(name for name, _ in self.turned)
        }


def cosines(
    model: TransformerBridge,
    cases: Sequence[Case],
    u: Float[Tensor, " d_model"],
    shuffled: Float[Tensor, " d_model"],
) -> dict[str, float]:
    """|Cosine| of u with the direction learned with shuffled intents, and with `answer_cosines`:
    the mean and the largest."""
    answers = answer_cosines(model, cases, u)
    return {
        "cosine_shuffled": float(torch.cosine_similarity(shuffled, u, dim=0).abs()),
        "cosine_answer": float(answers.mean()),
        "cosine_answer_max": float(answers.max()),
    }


def answer_cosines(
    model: TransformerBridge, cases: Sequence[Case], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " case"]:
    """|cosine| of the direction with the difference of the unembedding vectors of a case's two
    answers: near 1 if the direction is that of the answers (the final norm's gain left out)."""
    unembedding = model.original_model.get_output_embeddings().weight.float()
    context, prior = answer_tokens(model.tokenizer, cases)
    gap = (unembedding[context] - unembedding[prior]).cpu()
    return torch.nn.functional.cosine_similarity(gap, direction[None]).abs()
