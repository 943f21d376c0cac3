"""The chapter's networks with weights set by hand: each computes what the paper says of its kind.

They are the positive control of every measure. What cannot be told from weights alone, how a
measure changes over training, has a planted *course*: the mechanism set at rising strength.
"""

import math

import torch
from torch import nn

from replib.chapters.icl_gradient_descent.descent import best_one_step
from replib.chapters.icl_gradient_descent.network import (
    Form,
    Layers,
    Perceptron,
    Products,
    from_products,
    sinusoids,
)
from replib.chapters.icl_gradient_descent.tasks import PAIRS, D
from replib.chapters.icl_gradient_descent.training import Course, Trained
from replib.chapters.icl_gradient_descent.training_grid import STUDIES
from replib.chapters.icl_gradient_descent.weights import construction

# Step size and gamma of GD++, by steps. Near the best for two. Five have a smaller step than the
# best, which would run into the bound on the network's entries.
PLUS = {2: (13.4, 0.175), 5: (12.0, 0.17)}
_SOFTMAX_ONE = (6.87, 0.85)  # of one softmax head: scores' factor, values' factor; the best found
_SOFTMAX_TWO = 1.0  # of two: a small factor keeps the softmax in its linear part
_SHARP = 25.0  # of the first layer's scores, so that nearly all attention is on the next token
_NEXT_Y = 2 * D - 2  # where the first layer writes what it copies: a slow sine, nearly 0
_POINTS = 20  # of a planted course, after its start


def network(study: str, seed: int, strength: float = 1.0) -> nn.Module:
    """The hand-set network of a study. Seeds differ in scale and rotation between the matrices,
    which change nothing; controls are set to 0, and so is everything at strength 0."""
    form = Form(**STUDIES[study].form)
    if study == "perceptron":
        control = Perceptron(seed)
        for weight in control.parameters():
            nn.init.zeros_(weight)
        return control
    if study == "shuffled":
        return from_products(form, [construction(0.0)])
    if form.separate:
        return _separate(form, strength, is_frozen=study == "frozen")
    if form.softmax:
        return from_products(form, [_softmax_heads(form.heads)])
    if form.layers > 1:
        rate, gamma = PLUS[form.layers]
        qk, vp = construction(rate)
        vp[:D, :D] = -gamma * torch.eye(D)
        return from_products(form, [(qk, vp)] * (1 if form.shared else form.layers))
    return _turned(construction(strength * best_one_step().rate), seed)


def course(study: str, seed: int) -> Trained:
    """The network of a study, and the curve of its strength rising from 0 to 1; in two points where
    no claim is about the way."""
    steps, made = STUDIES[study].steps, network(study, seed, 0.0)
    points = _POINTS if study in ("linear", "separate") else 1
    course = Course(made)
    for at in range(1, points + 1):
        made.load_state_dict(network(study, seed, at / points).state_dict())
        course.add(steps * at // points)
    return course.trained(seed)


def _turned(products: Products, seed: int) -> Layers:
    """One linear layer with these products in four full matrices: W_Q and W_K turned by one random
    rotation, W_V and P by another, and a factor moved from one product to the other."""
    qk, vp = products
    generator = torch.Generator().manual_seed(seed)
    one, two = (torch.linalg.qr(torch.randn(D + 1, D + 1, generator=generator)).Q for _ in range(2))
    factor = 0.5 + torch.rand((), generator=generator)
    layer = Layers(Form(), seed)
    parts = (factor * qk @ one, one, vp @ two / factor, two.mT)
    with torch.no_grad():
        for weight, part in zip(layer.parameters(), parts, strict=True):
            weight[0, 0] = part
    return layer.eval()


def _softmax_heads(heads: int) -> Products | list[Products]:
    """One head: a softmax over x_q.x_i that reads y_i, the best that one can do this way. Two: the
    softmaxes of the scores and of minus the scores, subtracted, so that what does not depend on the
    scores cancels: to first order 2 / 10 times the sum of (score_i - mean score) y_i."""
    eye, y = torch.zeros(D + 1, D + 1), torch.zeros(D + 1, D + 1)
    eye[:D, :D], y[-1, -1] = torch.eye(D), 1.0
    root = math.sqrt(D + 1)  # that scores are divided by
    if heads == 1:
        factor, size = _SOFTMAX_ONE
        return factor * root * eye, -size * y
    size = best_one_step(pairs=PAIRS - 1).rate / (2 * _SOFTMAX_TWO)
    return [(sign * _SOFTMAX_TWO * root * eye, -sign * size * y) for sign in (1.0, -1.0)]


def _separate(form: Form, strength: float, is_frozen: bool) -> Layers:
    """Two layers for separate tokens. In the first, positions make token j attend to token j + 1,
    whose last input, the y of a pair, it writes beside its own x; it also takes away the constant
    that the prediction's entry starts with, a position's slow cosine. The second is one step of
    gradient descent on the x and the copied y. (Tokens of y copy one entry of the x after them,
    which the second layer reads as a y: some noise that no weights can avoid, as no position's sine
    or cosine tells odd from even.) The first half of the course sets the first layer, the second
    half the second."""
    copy, step = min(1.0, 2 * strength), max(0.0, 2 * strength - 1)
    width, speeds = form.width, sinusoids(2, D)[1, 0::2].asin()  # radians a token
    qk, vp = torch.zeros(width, width), torch.zeros(width, width)
    for i, speed in enumerate(speeds.tolist()):
        at = slice(D + 2 * i, D + 2 * i + 2)  # sin, cos of one speed, turned on by one token
        cos, sin = math.cos(speed), math.sin(speed)
        qk[at, at] = torch.tensor([[cos, -sin], [sin, cos]])
    qk *= copy * _SHARP * math.sqrt(width) * (0.0 if is_frozen else 1.0)
    vp[D - 1, _NEXT_Y] = copy
    vp[-1, -1] = -copy
    second = torch.zeros(width, width), torch.zeros(width, width)
    second[0][:D, :D] = torch.eye(D)
    second[1][_NEXT_Y, -1] = -step * best_one_step().rate / PAIRS
    return from_products(form, [(qk, vp), second])
