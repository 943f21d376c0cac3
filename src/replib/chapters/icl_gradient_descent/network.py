"""The Transformer of the paper: layers of attention alone, without a softmax, biases or norms.

    H <- H + sum over heads of (H W_Q) (C W_K)' (C W_V) P

C is H without its last token: the query is not among the keys and values. Nothing is divided by
the root of the key size unless there is a softmax. The prediction is *minus* the last entry of the
query (released code, attn.py and transformer.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib.chapters.icl_gradient_descent.tasks import D, Tasks

Stream = Float[Tensor, "task token d_token"]
# Of all tokens that read, or of the query alone.
Read = Float[Tensor, "task reader d_token"]
Products = tuple[Float[Tensor, "d_token d_token"], Float[Tensor, "d_token d_token"]]
_CUT = 0.87962566103423978  # standard deviation of a normal cut off at two


@dataclass(frozen=True)
class Form:
    """What a network is built of."""

    layers: int = 1
    shared: bool = True  # have all layers the same weights?
    heads: int = 1
    softmax: int = 0  # how many of the first layers have one
    separate: bool = False  # are x and y tokens of their own, with positions concatenated?
    positions: bool = True  # with `separate`: are they there, or 0?
    bound: float = 0.0  # entries of the stream are cut off there; 0: nowhere
    init: float = 0.002  # variance of the first weights times their inputs

    @property
    def width(self) -> int:
        """Entries of a token, which are also those of a query, key or value of one head."""
        return 2 * D if self.separate else D + 1


def attend(h: Stream, qk: Tensor, vp: Tensor, only_query: bool = False) -> Read:
    """What one linear head adds, from its two products W_Q W_K' and W_V P: to every token, or to
    the query alone."""
    context = h[:, :-1]
    scores = (h[:, -1:] if only_query else h) @ qk @ context.mT
    return scores @ context @ vp


class Layers(nn.Module):
    """The network; its weights are [layer head d_token d_token], one layer if they are shared."""

    def __init__(self, form: Form, seed: int):
        super().__init__()
        self.form = form
        generator = torch.Generator().manual_seed(seed)
        n, width = 1 if form.shared else form.layers, form.width

        def start(inputs: int) -> nn.Parameter:
            weights = torch.empty(n, form.heads, width, width)
            deviation = math.sqrt(form.init / inputs) / _CUT
            ends = -2 * deviation, 2 * deviation
            nn.init.trunc_normal_(weights, 0.0, deviation, *ends, generator=generator)
            return nn.Parameter(weights)

        self.query, self.key, self.value = (start(width) for _ in range(3))
        self.output = start(form.heads * width)
        places = sinusoids(21, D) * form.positions
        self.register_buffer("places", places, persistent=False)

    def products(self, layer: int, head: int = 0) -> Products:
        """(W_Q W_K', W_V P) of a head: all that its predictions depend on."""
        at = 0 if self.form.shared else layer
        qk = self.query[at, head] @ self.key[at, head].mT
        return qk, self.value[at, head] @ self.output[at, head]

    def read(self, tasks: Tasks) -> Stream:
        """The tokens of tasks as this network gets them, before positions."""
        return tasks.separate_tokens() if self.form.separate else tasks.tokens()

    def embed(self, tokens: Stream) -> Float[Tensor, "task token d_stream"]:
        if not self.form.separate:
            return tokens
        return torch.cat([tokens, self.places.expand(len(tokens), -1, -1)], -1)

    def layer(self, h: Stream, at: int, only_query: bool = False) -> Read:
        """The stream after layer `at`; with `only_query` the query's alone, which is all that the
        last layer's prediction needs."""
        added = 0.0
        for head in range(self.form.heads):
            qk, vp = self.products(at, head)
            if at < self.form.softmax:
                added = added + attend_softmax(h, qk, vp, only_query)
            else:
                added = added + attend(h, qk, vp, only_query)
        h = (h[:, -1:] if only_query else h) + added
        return h.clamp(-self.form.bound, self.form.bound) if self.form.bound else h

    def forward(self, tokens: Stream) -> Float[Tensor, " task"]:
        """The prediction of each task."""
        h, last = self.embed(tokens), self.form.layers - 1
        for at in range(self.form.layers):
            h = self.layer(h, at, only_query=at == last)
        return -h[:, -1, -1]


def attend_softmax(h: Stream, qk: Tensor, vp: Tensor, only_query: bool = False) -> Read:
    """What one softmax head adds; its scores are divided by the root of the key size."""
    context = h[:, :-1]
    scores = (h[:, -1:] if only_query else h) @ qk @ context.mT
    return (scores / math.sqrt(h.shape[-1])).softmax(-1) @ context @ vp


class Perceptron(nn.Module):
    """A control of three layers that reads the ten pairs and the query as one long vector."""

    def __init__(self, seed: int, width: int = 128):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [D * (D + 1) + D, width, width, 1]
        self.parts = nn.ModuleList(nn.Linear(*size) for size in pairwise(sizes))
        for part in self.parts:
            nn.init.kaiming_uniform_(part.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(part.bias)

    def read(self, tasks: Tasks) -> Stream:
        return tasks.tokens()

    def forward(self, tokens: Stream) -> Float[Tensor, " task"]:
        h = tokens.flatten(1)[:, :-1]  # the query's last entry is 0
        for part in self.parts[:-1]:
            h = part(h).relu()
        return self.parts[-1](h)[:, 0]


def sinusoids(tokens: int, size: int) -> Float[Tensor, "token place"]:
    """Sines and cosines of the position, by turns (released code, create_pos_encoding)."""
    position = torch.arange(tokens)[:, None].float()
    speed = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    return torch.stack([(position * speed).sin(), (position * speed).cos()], -1).flatten(1)


def from_products(form: Form, products: Sequence[Products | Sequence[Products]]) -> Layers:
    """A network whose layers have these products: one pair for each layer that has weights of its
    own, or one for each of its heads. Keys and the output matrix are then identities."""
    network = Layers(form, 0)
    one = torch.eye(form.width)
    with torch.no_grad():
        for at, heads in enumerate(products):
            for head, (qk, vp) in enumerate([heads] if form.heads == 1 else heads):
                for name, weight in zip(
                    ("query", "key", "value", "output"), (qk, one, vp, one), strict=True
                ):
                    getattr(network, name)[at, head] = weight
    return network.eval()


@torch.no_grad()
def predictions(network: nn.Module, tasks: Tasks) -> Float[Tensor, " task"]:
    return network(network.read(tasks))


def sensitivities(network: nn.Module, tasks: Tasks) -> Float[Tensor, "task d"]:
    """Of each task, the gradient of the prediction with respect to x_q."""
    tokens = network.read(tasks).requires_grad_()
    (gradient,) = torch.autograd.grad(network(tokens).sum(), tokens)
    return gradient[:, -1, :D]
