"""A pretrained model, and another beside it: who copies more, and who loses more by shuffling
(Jelassi et al., 2402.01032, Sec. 4).

Scores of one model come alone or, with a second one to compare it with, in pairs; without the
second there is nothing to compare, and the functions here return None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib import metrics
from replib.chapters.copying_pretrained.pretrained import Item, loss_per_byte, tokens_right
from replib.metrics import Estimate

ALONE = (
    "This page shows one model. A state-space model that read the same text, `mamba-370m` beside "
    "`pythia-410m`, is given with `-p against=...`; then it reports what the claims need."
)
ENOUGH = 0.2  # of the shortest texts or books has to be right in one of the two
MARGIN = 0.02  # nats a byte by which a state-space model may predict text worse (claim 5.12)


@dataclass(frozen=True)
class Scores:
    """How right one model was, for items of several lengths, from short to long."""

    whole: Float[Tensor, "length item"]  # 1 where every token of the answer is right, else 0
    tokens: Float[Tensor, "length item"]  # share of the answer's tokens that are right

    @property
    def area(self) -> Float[Tensor, " item"]:
        """Whole answers of each item, mean over the lengths: the area under the curve."""
        return self.whole.mean(0)


def scores(
    models: Mapping[str, TransformerBridge], items: Mapping[str, Sequence[Sequence[Item]]]
) -> dict[tuple[str, str], Scores]:
    """Scores by (model, kind of item), for `items` of each kind: as many for each length."""
    return {
        (name, kind): _scores([tokens_right(model, some) for some in by_length])
        for name, model in models.items()
        for kind, by_length in items.items()
    }


def _scores(right: Sequence[Sequence[Bool[Tensor, " _"]]]) -> Scores:
    """From which tokens of each item were right, by length."""
    whole = [torch.stack([row.all() for row in rows]) for rows in right]
    tokens = [torch.stack([row.double().mean() for row in rows]) for rows in right]
    return Scores(torch.stack(whole).double(), torch.stack(tokens))


def lead(
    values: Sequence[Float[Tensor, " item"]], generator: np.random.Generator
) -> Estimate | None:
    """The first model's mean over items less the second's; the items are the same for both."""
    if len(values) < 2:
        return None
    a, b = values
    return metrics.bootstrap(a - b, range(len(a)), generator)


def shuffling_loss(plain: Scores, shuffled: Scores) -> float:
    """What shuffling the words takes away, as a share of what was copied in order, over all lengths
    and items; 1 where nothing was copied."""
    return float(_lost(plain.area.mean().item(), shuffled.area.mean().item()))


def _lost(plain: np.ndarray | float, shuffled: np.ndarray | float) -> np.ndarray | float:
    return 1 - shuffled / np.maximum(plain, 1e-9)


def shuffling_lead(
    plain: Sequence[Scores], shuffled: Sequence[Scores], generator: np.random.Generator
) -> Estimate | None:
    """How much more the second model loses by shuffling than the first: difference of shares."""
    if len(plain) < 2:
        return None
    areas = [torch.stack([one.area for one in some], -1) for some in (plain, shuffled)]
    values = torch.stack(areas, -1)  # item model kind

    def more(mean: Float[np.ndarray, "*draw model kind"]) -> np.ndarray | float:
        lost = _lost(mean[..., 0], mean[..., 1])
        return lost[..., 1] - lost[..., 0]

    return metrics.bootstrap(values, range(len(values)), generator, more)


def can_repeat(scores: Sequence[Scores]) -> bool:
    """Is one of two models right in at least `ENOUGH` of the shortest items? False for one alone:
    there is nothing to compare."""
    return len(scores) > 1 and max(float(one.whole[0].mean()) for one in scores) >= ENOUGH


def behind(
    models: Sequence[TransformerBridge], text: str, generator: np.random.Generator
) -> Estimate:
    """How much worse the second model predicts a text than the first, in nats a byte: mean over its
    sentences, each read alone."""
    sentences = [sentence.strip() + "." for sentence in text.split(".") if sentence.strip()]
    losses = torch.tensor([[loss_per_byte(one, some) for some in sentences] for one in models])
    return metrics.bootstrap(losses[1] - losses[0], range(len(sentences)), generator)
