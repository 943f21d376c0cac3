"""The network of the paper: two layers of attention with one head each, and a classifier of three
layers (Reddy 2312.03002, Sec. 2; sizes and starting values as in the author's released code).

A layer adds to every token x_i the sum over j <= i of A_ij V x_j, with A = softmax(x_i Q' K x_j):
no square root of the width, no norm, no output matrix. The classifier reads the query alone, the
last token.

Only that token leaves the second layer. So `TwoLayers.forward` never forms what nobody reads, and
moves V1 behind the mixing, which is the same function with the same gradients (a test compares it
with `layer`, used twice) at a third of the cost.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib.chapters.abrupt_induction.law import CONTENT, WIDTH

N_HIDDEN = 3  # layers of the classifier before its last


class Seen(NamedTuple):
    """What a network says, and where it looked."""

    logits: Float[Tensor, "row label"]
    first: Float[Tensor, "row token token"]  # attention of layer 1: who looks, at whom
    second: Float[Tensor, "row token"]  # attention of the query in layer 2


def layer(
    x: Float[Tensor, "row token 128"],
    Q: Float[Tensor, "128 128"],
    K: Float[Tensor, "128 128"],
    V: Float[Tensor, "128 128"],
) -> tuple[Float[Tensor, "row token 128"], Float[Tensor, "row token token"]]:
    """One layer as the paper writes it: what comes out, and its attention."""
    scores = (x @ Q.T) @ (x @ K.T).transpose(1, 2)
    attention = causal_softmax(scores)
    return x + attention @ (x @ V.T), attention


def causal_softmax(
    scores: Float[Tensor, "*row token token"],
) -> Float[Tensor, "*row token token"]:
    """Shares over the tokens up to the one that looks."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


class TwoLayers(nn.Module):
    """Weights by the paper's names: Q1, K1, V1, Q2, K2, V2 [128 128], and of the classifier W1 to
    W3 [128 128], b1 to b3 [1], W4 [label 128]. With one layer the first writes nothing (V1 = 0) and
    is not trained."""

    def __init__(self, n_labels: int, generator: torch.Generator, n_layers: int = 2) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        for name in ("Q1", "K1", "V1", "Q2", "K2", "V2"):
            setattr(self, name, normal(WIDTH, WIDTH, scale=CONTENT**-0.5))
        for i in range(1, N_HIDDEN + 1):
            setattr(self, f"W{i}", normal(WIDTH, WIDTH, scale=(2 / WIDTH) ** 0.5))
            setattr(self, f"b{i}", normal(1, scale=WIDTH**-0.5))
        self.W4 = normal(n_labels, WIDTH, scale=WIDTH**-0.5)
        if n_layers == 1:
            self.V1 = nn.Parameter(torch.zeros(WIDTH, WIDTH), requires_grad=False)

    def classify(self, x: Float[Tensor, "row 128"]) -> Float[Tensor, "row label"]:
        """The logits of the labels, from what layer 2 left at the query."""
        for i in range(1, N_HIDDEN + 1):
            x = (x @ getattr(self, f"W{i}").T + getattr(self, f"b{i}")).relu()
        return x @ self.W4.T

    def first_attention(
        self, x: Float[Tensor, "row token 128"]
    ) -> Float[Tensor, "row token token"]:
        """The attention of layer 1, for all tokens."""
        return causal_softmax((x @ (self.Q1.T @ self.K1)) @ x.transpose(1, 2))

    def run(
        self,
        x: Float[Tensor, "row token 128"],
        first: Float[Tensor, "row token token"] | None = None,
    ) -> Seen:
        """Logits and attention; with `first`, that attention takes the place of layer 1's."""
        first = self.first_attention(x) if first is None else first
        out, second = self.read(x, first)
        return Seen(self.classify(out), first, second)

    def read(
        self, x: Float[Tensor, "row token 128"], first: Float[Tensor, "row token token"]
    ) -> tuple[Float[Tensor, "row 128"], Float[Tensor, "row token"]]:
        """What layer 2 leaves at the query, and its attention there, given that of layer 1."""
        # What each token took up in layer 1 is V1 times a mixture of tokens. None is formed but
        # that of the query: of the others a score or a weighted sum is read, which mixes numbers.
        query = x[:, -1] + (first[:, -1:] @ x)[:, 0] @ self.V1.T
        wanted = (query @ self.Q2.T) @ self.K2  # row 128: a token's score is its product with this
        both = x @ torch.stack([wanted, wanted @ self.V1], -1)
        of_token, of_mixture = both.unbind(-1)
        second = (of_token + (first * of_mixture[:, None]).sum(-1)).softmax(-1)
        shares = (second[..., None] * first).sum(1)  # row token: of each token in what was found
        itself, mixture = (torch.stack([second, shares], 1) @ x).unbind(1)
        return query + (itself + mixture @ self.V1.T) @ self.V2.T, second

    def forward(self, x: Float[Tensor, "row token 128"]) -> Float[Tensor, "row label"]:
        return self.run(x).logits
