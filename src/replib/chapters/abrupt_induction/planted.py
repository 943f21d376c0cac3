"""Networks whose weights are set by hand: a label picker, an induction head, a memory; and their
history, a birth that happens when it is told to.

**The head.** Layer 1 looks one place back: Q1 reads the place, K1 the place moved on by one. V1
copies the content found there, 63 numbers, over the 65 that say where a token stands (a place is
one number among them, too little to disturb). So a label now carries the item before it. In layer
2, Q2 reads the query's content and K2 that copy; V2 brings the content of what was found, the
label.

**The picker.** Without all that a token of layer 1 looks at itself and takes up nothing; attention
of layer 2 is even, and the query takes up the mean of the context.
A classifier that knows the labels reads from it one of those that are in the context.

**The memory.** The classifier knows the label of each class by the query's own content.

The classifier is linear: its three layers add so large a bias that no ReLU ever cuts.
"""

import torch
from torch import Tensor

from replib.chapters.abrupt_induction.law import CONTENT, N_PLACES, WIDTH
from replib.chapters.abrupt_induction.network import N_HIDDEN, TwoLayers
from replib.chapters.abrupt_induction.sequences import Directions

BACK, MATCH = 14.0, 11.0  # scores of the token before, and of the label of a matching item
COPIED = 3.0  # how strongly layer 1 writes what stood before, beside a place, which is 1
FOUND, KNOWN = 28.0, 24.0  # how strongly what was found, and what is known, speaks
_BIAS = 30.0
_SEED = 11  # of what the classifier says before it knows the labels


def planted_network(
    directions: Directions,
    picked: float = 1.0,
    formed: float = 1.0,
    known: float = 0.0,
    offset: int = 1,
) -> TwoLayers:
    """A network at one moment of its history; each part from 0 (absent) to 1.

    picked: the classifier knows the labels. formed: the head; in the first half of it layer 1 turns
    from the token itself to the one before, in the second layer 2 begins to match. known: the
    memory, for as many classes as labels. offset: how many places back the first layer looks.
    """
    generator = torch.Generator().manual_seed(_SEED)
    n_labels = len(directions.labels)
    network = TwoLayers(n_labels, generator)
    back, match = min(1.0, 2 * formed), max(0.0, 2 * formed - 1)
    random = network.W4.detach() / WIDTH**0.5
    place, content = torch.arange(N_PLACES), torch.arange(N_PLACES, WIDTH)
    copy = torch.arange(CONTENT)  # where V1 and V2 write contents
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.Q1[place, place] = BACK
        network.K1[place, place] = 1 - back
        network.K1[(place + offset) % N_PLACES, place] = back
        network.V1[copy, content] = COPIED * match
        network.Q2[copy, content] = MATCH / COPIED * match
        network.K2[copy, copy] = 1
        network.V2[copy, content] = FOUND
        for i in range(1, N_HIDDEN + 1):
            getattr(network, f"W{i}").copy_(torch.eye(WIDTH))
            getattr(network, f"b{i}").fill_(_BIAS)
        network.W4[:, copy] = picked * directions.labels
        if known:
            network.W4[:, content] = known * KNOWN * _recalled(directions)
        network.W4 += (1 - picked) * random
        network.W4 -= network.W4.mean(1, keepdim=True)  # the bias says nothing
    return network.eval()


def _recalled(directions: Directions) -> Tensor:
    """[label 63]: the direction of the class that has each label; classes beyond are not known."""
    return directions.classes[: len(directions.labels)]


def history(steps: list[float], born: float) -> list[dict[str, float]]:
    """`picked` and `formed` at each step: labels are learnt slowly from the start on, to their end
    at half of `born`; the head forms between 0.97 and 1.03 times `born`."""
    x = torch.tensor(steps) / born
    picked = (2 * x).clamp(0, 1)
    formed = ((x - 0.97) / 0.06).clamp(0, 1)
    return [{"picked": float(a), "formed": float(b)} for a, b in zip(picked, formed, strict=True)]
