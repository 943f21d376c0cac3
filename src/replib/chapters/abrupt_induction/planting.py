"""Is the head enough? It is written into an untrained network, whose classifier alone is trained.

And is it needed? The attention of layer 1 is replaced, for the labels or for the items of the
context, by that of the same network before the jump. Both are this project's, not the paper's.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib.chapters.abrupt_induction.births import Run
from replib.chapters.abrupt_induction.curves import Curve, Points
from replib.chapters.abrupt_induction.law import Law
from replib.chapters.abrupt_induction.measures import is_right
from replib.chapters.abrupt_induction.network import TwoLayers
from replib.chapters.abrupt_induction.planted import planted_network
from replib.chapters.abrupt_induction.sequences import Directions, Sequences, draw, draw_directions
from replib.chapters.abrupt_induction.training import gradient_descent
from replib.chapters.abrupt_induction.training_grid import BATCH

N_POOL, N_TEST, EVERY = 8192, 512, 100
_AT_ONCE = 1024  # sequences of one pass
ATTENTION = ("Q1", "K1", "V1", "Q2", "K2", "V2")


@torch.no_grad()
def with_earlier_attention(
    network: TwoLayers, earlier: TwoLayers, sequences: Sequences, tokens: str
) -> Float[Tensor, " row"]:
    """Is each answer right, when the `labels` or the `items` of the context look in layer 1 where
    they did in `earlier`? Labels stand at the odd tokens; the query is left alone."""
    x = sequences.tokens
    first, before = network.first_attention(x), earlier.first_attention(x)
    looking = slice(1, None, 2) if tokens == "labels" else slice(0, x.shape[1] - 1, 2)
    first[:, looking] = before[:, looking]
    return is_right(network.run(x, first), sequences).double()


def necessity(run: Run, n: int, seed: int) -> dict[str, float]:
    """IC of a network that has jumped: `whole`, and with the attention of `labels` or of `items`
    taken from before the jump; on `n` new sequences."""
    generator = torch.Generator().manual_seed(seed)
    fresh = draw(replace(run.law, bursty=1.0, fresh=1.0), run.directions, n, generator)
    end, before = run.networks["end"], run.networks["before"]
    with torch.no_grad():
        found = {"whole": is_right(end.run(fresh.tokens), fresh).double().mean().item()}
    for tokens in ("labels", "items"):
        found[tokens] = with_earlier_attention(end, before, fresh, tokens).mean().item()
    return found


@dataclass(frozen=True)
class Features:
    """What the classifier reads of some sequences, with their answers."""

    x: Float[Tensor, "row 128"]
    answer: Tensor


def _features(network: TwoLayers, sequences: Sequences) -> Features:
    with torch.no_grad():
        some = sequences.tokens.split(_AT_ONCE)
        read = [network.read(x, network.first_attention(x))[0] for x in some]
    return Features(torch.cat(read), sequences.answer)


def planted_head(law: Law, seed: int, offset: int) -> tuple[TwoLayers, Directions, torch.Generator]:
    """An untrained network with the head's six matrices written into it."""
    generator = torch.Generator().manual_seed(seed)
    directions = draw_directions(law, generator)
    network = TwoLayers(law.n_labels, generator)
    head = planted_network(directions, offset=offset).state_dict()
    with torch.no_grad():
        for name in ATTENTION:
            getattr(network, name).copy_(head[name]).requires_grad_(False)
    return network, directions, generator


def train_classifier(law: Law, seed: int, steps: int, offset: int = 1) -> dict[str, Points]:
    """`step` and `ic` while only the classifier of such a network is trained, at the author's rate.
    Its batches come from a pool of sequences that is drawn once: what it reads of them never
    changes, so it is computed once too."""
    network, directions, generator = planted_head(law, seed, offset)
    pool = _features(network, draw(law, directions, N_POOL, generator))
    test = _features(network, draw(law, directions, N_TEST, generator))
    optimizer, curve = gradient_descent(network), {"step": [], "ic": []}
    for n in range(steps + 1):
        if n % EVERY == 0:
            with torch.no_grad():
                right = network.classify(test.x).argmax(-1) == test.answer
            curve["step"].append(n)
            curve["ic"].append(right.double().mean().item())
        rows = torch.randint(N_POOL, (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(network.classify(pool.x[rows]), pool.answer[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


def classifiers(way: str, law: Law, seed: int, steps: int) -> tuple[Curve, Curve]:
    """The curves of a classifier with the head, and with the head one place off; set by hand where
    `way` is planted, their start alone if untrained."""
    make = planted_classifier if way == "planted" else train_classifier
    steps = 0 if way == "untrained" else steps
    right, wrong = (make(law, seed, steps, offset) for offset in (1, 2))
    return right, wrong


def planted_classifier(law: Law, seed: int, steps: int, offset: int = 1) -> Curve:
    """What stands for `train_classifier` on the page of planted networks: the classifier is set by
    hand too, and knows the labels from a tenth of the steps on."""
    generator = torch.Generator().manual_seed(seed)
    directions = draw_directions(law, generator)
    test, curve = draw(law, directions, N_TEST, generator), {"step": [], "ic": []}
    for share, picked in ((0.0, 0.0), (0.05, 0.0), (0.1, 1.0), (1.0, 1.0)):
        network = planted_network(directions, picked, offset=offset)
        with torch.no_grad():
            right = is_right(network.run(test.tokens), test)
        curve["step"].append(share * steps)
        curve["ic"].append(right.double().mean().item())
    return curve
