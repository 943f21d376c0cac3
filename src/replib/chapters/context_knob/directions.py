"""Directions in which the two intents differ (Minder et al., 2411.07404, Sec. 6): what they are got
from, the plain ways to get one, and the learned one (DAS of rank 1, TransformerLens' own)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.interchange import fit_das

from replib.chapters.context_knob import last_token, steering
from replib.chapters.context_knob.asking import answer_tokens, prompts_of
from replib.chapters.context_knob.intents import Case
from replib.chapters.context_knob.reading import BothIntents
from replib.interventions.generation import Prefilled

Change = Callable[[Tensor, Tensor, Tensor], Tensor]  # of h, the source's h, and a direction
N_LIKELY = 5  # tokens of each prompt that a learned direction has to compete with


@dataclass(frozen=True)
class Opposites:
    """Cases read once under both intents. Rows are the cases under the context intent, then the
    same under memory's; the source of each row is the same case under the other intent."""

    cases: Sequence[Case]
    prompts: Prefilled
    token: Int[Tensor, " row"]  # first token of the source's answer
    states: Float[Tensor, "layer row d_model"]  # every layer's output at the last token
    likely: Int[Tensor, "row token"]  # the most probable tokens, best first

    @property
    def right(self) -> Bool[Tensor, " case"]:
        """Is the first token right under both intents?"""
        return (self.likely[:, 0] == self.own_token).unflatten(0, (2, -1)).all(0)

    @property
    def used(self) -> Bool[Tensor, " case"]:
        """The cases that are right; all, if none is."""
        return self.right if self.right.any() else ~self.right

    @property
    def kept(self) -> Int[Tensor, " row"]:
        """Rows of the cases that are used."""
        return self.used.repeat(2).nonzero()[:, 0]

    @property
    def own_token(self) -> Int[Tensor, " row"]:
        """First token of the row's own answer."""
        return self.token.roll(len(self.cases))

    @property
    def answers(self) -> Int[Tensor, "row answer"]:
        """First token of the source's answer, and of the row's own."""
        return torch.stack([self.token, self.own_token], -1)

    def by_direction(self, x: Tensor) -> Tensor:
        """[row *rest] as [direction case *rest]; the first direction is from context to memory."""
        return x.unflatten(0, (2, len(self.cases)))

    def exchanged(
        self, layer: int, change: Change, v: Float[Tensor, "draw d_model"]
    ) -> Float[Tensor, "row draw d_model"]:
        """Final states of all rows when a layer's output h at the last token becomes change(h, that
        of its source, v), for each v side by side."""
        h, given = self.states[layer], self.states[layer].roll(len(self.cases), 0)
        found = []
        for rows in last_token.chunks(torch.arange(len(h)), len(v)):
            start = layer, h[rows, None].expand(-1, len(v), -1)
            edit = steering.edited(
                self.prompts.model, layer, change, given[rows, None], v, everywhere=True
            )
            with torch.no_grad(), edit:
                found.append(last_token.final_states(self.prompts, rows, len(v), start))
        return torch.cat(found)

    def says_source(self, h: Float[Tensor, "row draw d_model"]) -> Float[Tensor, "row draw"]:
        """Is the source's answer the first token, of the whole vocabulary?"""
        said = last_token.logits(self.prompts, h).argmax(-1).cpu()
        return (said == self.token[:, None]).double()

    def towards_source(self, h: Float[Tensor, "row draw d_model"]) -> Float[Tensor, "row draw"]:
        """By how much does the source's answer lead the row's own?"""
        both = last_token.between(self.prompts, h, self.answers)
        return (both[..., 0] - both[..., 1]).double()


def read_opposites(
    model: TransformerBridge, cases: Sequence[Case], prompts: Prefilled | None = None
) -> Opposites:
    """Cases under both intents; `prompts` if they have been read before, in the same order."""
    prompts = prompts or BothIntents(model, prompts_of(model.tokenizer, cases))
    with torch.no_grad():
        likely = prompts.step().topk(N_LIKELY).indices.cpu()
    token = answer_tokens(model.tokenizer, cases).flip(0).flatten()
    return Opposites(cases, prompts, token, steering.residuals(prompts).cpu(), likely)


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


def random_directions(n: int, d_model: int, seed: int) -> Float[Tensor, "n d_model"]:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))


def coin_targets(rows: Opposites, seed: int) -> Int[Tensor, " row"]:
    """For each row, by a coin, its source's answer or its own: shuffled intents."""
    coin = torch.rand(len(rows.token), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(coin, rows.token, rows.own_token)


def learn(
    rows: Opposites, layer: int, targets: Int[Tensor, " row"], seed: int
) -> Float[Tensor, " d_model"]:
    """The unit direction whose exchange makes the rows that are right say `targets`; under the
    context intent its coordinate is the larger one. Cross-entropy on the first token, as in the
    released code (das.py), but among all answers and each prompt's `likely` tokens, and not over
    the whole vocabulary."""
    words = torch.cat([rows.token, rows.likely.flatten()]).unique()
    kept, h = rows.kept, rows.states[layer]

    def task_logits(some: Int[Tensor, " row"]) -> Float[Tensor, "row word"]:
        found = last_token.final_states(rows.prompts, some, 1, (layer, h[some, None]))
        return last_token.logits(rows.prompts, found[:, 0], words)

    zero = torch.zeros_like(kept)
    result = fit_das(
        rows.prompts.model,
        steering.resid_name(layer),
        kept,
        kept.roll(len(kept) // 2),
        torch.searchsorted(words, targets[kept]),
        task_logits,
        rank=1,
        base_positions=zero,
        source_positions=zero,
        epochs=8,
        batch_size=16,
        lr=1e-2,
        seed=seed,
    )
    u = result.basis[:, 0].detach().float().cpu()
    return u * (1.0 if mean_difference(h[kept]) @ u >= 0 else -1.0)


def layer_scores(
    rows: Opposites, change: Change, v: Sequence[Tensor], layers: Sequence[int]
) -> Float[Tensor, "layer case"]:
    """By how much the source's answer leads once a layer's own direction v is exchanged; of the
    cases that are used, the mean of both directions."""
    found = []
    for layer in layers:
        h = rows.exchanged(layer, change, v[layer][None])
        found.append(rows.by_direction(rows.towards_source(h))[..., 0].mean(0))
    return torch.stack(found)[:, rows.used]


def answer_cosines(
    model: TransformerBridge, cases: Sequence[Case], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " case"]:
    """|cosine| of the direction with the difference of the unembedding vectors of a case's two
    answers: near 1 if the direction is that of the answers (the final norm's gain left out)."""
    unembedding = model.original_model.get_output_embeddings().weight.float()
    context, prior = answer_tokens(model.tokenizer, cases)
    gap = (unembedding[context] - unembedding[prior]).cpu()
    return torch.nn.functional.cosine_similarity(gap, direction[None]).abs()
