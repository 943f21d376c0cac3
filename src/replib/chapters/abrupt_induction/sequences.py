"""Sequences of items and labels, drawn as in the author's released code (Reddy 2312.03002, Sec. 2).

A sequence is `item label item label ... query`. Every token is a vector of 128 numbers: 65 that say
where it stands (one of them is 1), and 63 of content. A class is a direction in the space of
contents; an item is its class's direction with some noise; a label is one of a few directions, the
same in all sequences. The answer is the label of the query's class.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.chapters.abrupt_induction.law import CONTENT, N_FRESH, N_PLACES, WIDTH, Law


@dataclass(frozen=True)
class Directions:
    """The contents of labels and known classes; entries of variance 1 / 63."""

    labels: Float[Tensor, "label 63"]
    classes: Float[Tensor, "class 63"]


@dataclass(frozen=True)
class Sequences:
    """Some sequences, with what they consist of."""

    tokens: Float[Tensor, "row token 128"]
    classes: Int[Tensor, "row pair"]  # fresh classes are counted on from the known ones
    labels: Int[Tensor, "row pair"]  # as shown in the context
    query: Int[Tensor, " row"]  # the query's class
    answer: Int[Tensor, " row"]  # its label, swapped where the context's labels are

    @property
    def matches(self) -> Bool[Tensor, "row pair"]:
        """Which pairs of the context are of the query's class."""
        return self.classes == self.query[:, None]

    def __len__(self) -> int:
        return len(self.answer)


def draw_directions(law: Law, generator: torch.Generator) -> Directions:
    """Labels and known classes of one training."""
    labels = torch.randn(law.n_labels, CONTENT, generator=generator) / CONTENT**0.5
    classes = torch.randn(law.n_classes, CONTENT, generator=generator) / CONTENT**0.5
    return Directions(labels, classes)


def draw(
    law: Law, directions: Directions, n: int, generator: torch.Generator, swapped: bool = False
) -> Sequences:
    """`n` sequences. With `swapped`, each label of the context, and the answer, is the next one (of
    known classes: what was learnt in weights is then wrong).

    As in the author's code: classes of a bursty context have different labels; a fresh sequence is
    always bursty; the classes of any other sequence are drawn independently, the query's too, so
    that it is seldom in the context; and the first token stands at a random place.
    """
    known = law.n_classes
    is_fresh = torch.rand(n, 1, generator=generator) < law.fresh
    is_bursty = is_fresh | (torch.rand(n, 1, generator=generator) < law.bursty)
    per_label = torch.where(is_fresh, N_FRESH // law.n_labels, known // law.n_labels)

    # Bursty: labels that differ, for each one of its classes, every class `burst` times.
    n_different = law.n_pairs // law.burst
    order = torch.rand(n, law.n_labels, generator=generator).argsort(1)[:, :n_different]
    which = (torch.rand(n, n_different, generator=generator) * per_label).long()
    some = (which * law.n_labels + order).repeat(1, law.burst)
    if law.burst > 1:
        shuffled = torch.rand(n, law.n_pairs, generator=generator).argsort(1)
        some = some.gather(1, shuffled)
    asked = torch.randint(law.n_pairs, (n, 1), generator=generator)
    query = some.gather(1, asked)

    if law.bursty < 1:  # the others: any classes, each drawn by itself
        loose = torch.randint(known, (n, law.n_pairs + 1), generator=generator)
        some = torch.where(is_bursty, some, loose[:, :-1])
        query = torch.where(is_bursty, query, loose[:, -1:])

    every = torch.cat([some, query], 1)
    labels = (every + int(swapped)) % law.n_labels
    every = every + is_fresh * known
    new = torch.randn(N_FRESH, CONTENT, generator=generator) / CONTENT**0.5
    centre = torch.cat([directions.classes, new]).index_select(0, every.flatten())
    centre = centre.view(*every.shape, CONTENT)
    noise = torch.randn(centre.shape, generator=generator) / CONTENT**0.5
    tokens = torch.zeros(n, law.n_tokens, WIDTH)
    tokens[:, ::2, N_PLACES:] = (centre + law.noise * noise) / (1 + law.noise**2) ** 0.5
    tokens[:, 1::2, N_PLACES:] = directions.labels[labels[:, :-1]]
    first = torch.randint(N_PLACES - law.n_tokens + 1, (n, 1), generator=generator)
    tokens.scatter_(2, (first + torch.arange(law.n_tokens))[..., None], 1.0)
    return Sequences(tokens, every[:, :-1], labels[:, :-1], every[:, -1], labels[:, -1])
