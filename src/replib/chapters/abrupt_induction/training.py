"""Train one cell, and read what was stored (Reddy 2312.03002; the optimiser of the released code:
plain gradient descent on batches of 128 fresh sequences, all weights times 1 - 1e-6 at each step).
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from replib.chapters.abrupt_induction import stored
from replib.chapters.abrupt_induction.curves import Curve, Points, jump
from replib.chapters.abrupt_induction.measures import measured, tests_of
from replib.chapters.abrupt_induction.network import TwoLayers
from replib.chapters.abrupt_induction.sequences import Directions, draw, draw_directions
from replib.chapters.abrupt_induction.training_grid import (
    BATCH,
    DECAY,
    EVERY,
    N_TEST,
    RATE,
    STUDIES,
    Cell,
    Study,
    settings,
)
from replib.errors import UsageError
from replib.files import write_whole
from replib.models.device import one_thread

Weights = dict[str, Tensor]


def start(study: Study, seed: int) -> tuple[TwoLayers, Directions, torch.Generator]:
    """The network at its start, the directions of labels and classes, and the generator that draws
    what comes next. One seed always gives the same."""
    generator = torch.Generator().manual_seed(seed)
    directions = draw_directions(study.law, generator)
    network = TwoLayers(study.law.n_labels, generator, study.n_layers)
    return network, directions, generator


def step(
    network: TwoLayers,
    study: Study,
    directions: Directions,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Tensor:
    """One step of training on a fresh batch; returns its loss in nats."""
    batch = draw(study.law, directions, BATCH, generator)
    loss = nn.functional.cross_entropy(network(batch.tokens), batch.answer)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def gradient_descent(network: TwoLayers) -> torch.optim.Optimizer:
    """Plain SGD. Torch multiplies the decay by the rate, the author does not."""
    some = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.SGD(some, lr=RATE, weight_decay=DECAY / RATE, fused=True)


def train(
    study: Study,
    seed: int,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Weights], dict[str, Points]]:
    """Train a network from its start. Returns the weights at the moments `before` (the last point
    up to 0.9 t10), `at` (the first at which IC is half the way up) and `end`, and the curve.
    Without a jump there is `end` alone.

    The curve has a point every `EVERY` steps, from step 0 on: training `loss` since the last one
    (at step 0 that of one batch), and what `measures.measured` gives. `stop_after` ends early. One
    thread and one seed give one result, to the last bit.
    """
    network, directions, generator = start(study, seed)
    tests, optimizer = tests_of(study.law, directions, N_TEST), gradient_descent(network)
    first = draw(study.law, directions, BATCH, generator)
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(network(first.tokens), first.answer)]
    curve: dict[str, Points] = {}
    kept: list[Weights] = []
    for n in range(10**9):
        if n % EVERY == 0:
            point = {"step": n, "loss": torch.stack(losses).mean().item()}
            for key, value in (point | measured(network, tests)).items():
                curve.setdefault(key, []).append(round(value, 6))
            kept.append({k: v.half().clone() for k, v in network.state_dict().items()})
            losses.clear()
            say(f"step {n}: loss {curve['loss'][-1]:.3f}, IC {curve['ic'][-1]:.0%}")
            if is_over(study, curve) or n >= (stop_after or n + 1):
                break
        losses.append(step(network, study, directions, optimizer, generator))
    return moments(study, curve, kept), curve


def go_on(
    network: TwoLayers, study: Study, directions: Directions, steps: int, seed: int
) -> dict[str, Points]:
    """Train a copy of a network further, on other sequences; its curve, with a point every 100
    steps. Plain gradient descent keeps nothing between steps: nothing else has to be restored."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(10**7 + seed)
    tests, optimizer = tests_of(study.law, directions, N_TEST), gradient_descent(network)
    curve: dict[str, Points] = {}
    for n in range(steps + 1):
        if n % 100 == 0:
            for key, value in ({"step": n} | measured(network, tests)).items():
                curve.setdefault(key, []).append(value)
        step(network, study, directions, optimizer, generator)
    return curve


def is_over(study: Study, curve: Curve) -> bool:
    """Has this training reached its end (see `training_grid`)?"""
    found, n = jump(curve, study.law.n_pairs), curve["step"][-1]
    if study.until and found.jumped:
        return n >= study.until * found.t90
    return n >= study.steps


def moments(study: Study, curve: Curve, kept: list[Weights]) -> dict[str, Weights]:
    """The weights before, at and after the jump, of those at every point of the curve."""
    found, n = jump(curve, study.law.n_pairs), study.law.n_pairs
    some = {"end": kept[-1]}
    if found.jumped:
        before = [i for i, at in enumerate(curve["step"]) if at <= 0.9 * found.t10]
        half = next(i for i, ic in enumerate(curve["ic"]) if ic >= (1 + 1 / n) / 2)
        some = {"before": kept[max(before)], "at": kept[half]} | some
    return some


def train_cell(root: Path, cell: Cell, say: Callable[[str], None] = lambda line: None) -> Path:
    """Train a cell and store it in place of an earlier one; returns its card. Weights are stored in
    float16, those moments that the study keeps."""
    study = STUDIES[cell.study]
    began = time.process_time()
    with one_thread():
        found, curve = train(study, cell.seed, say=say)
    flat = {f"{m}.{k}": v for m, one in found.items() if m in study.keeps for k, v in one.items()}
    weights = save(flat)
    if study.keeps:
        write_whole(stored.weights_path(root, cell), weights)
    card = {
        "cell": asdict(cell),
        "settings": settings(cell.study),
        "sha256": hashlib.sha256(weights).hexdigest() if study.keeps else "",
        "code_sha256": stored.code_sha256(),
        "versions": {"torch": version("torch")},
        "cpu_s": round(time.process_time() - began),
        "curve": curve,
    }
    path = stored.card_path(root, cell)
    write_whole(path, (json.dumps(card) + "\n").encode())
    return path


def load_networks(root: Path, cell: Cell) -> dict[str, TwoLayers]:
    """The networks of a stored cell by moment, in float32, and `start`, which its seed makes again.
    Raises NotStored if the cell is missing or altered."""
    stored.read_card(root, cell)
    study = STUDIES[cell.study]
    found = {"start": start(study, cell.seed)[0].eval()}
    flat = load(stored.weights_path(root, cell).read_bytes()) if study.keeps else {}
    for moment in dict.fromkeys(name.partition(".")[0] for name in flat):
        own = {k.partition(".")[2]: v for k, v in flat.items() if k.startswith(f"{moment}.")}
        found[moment] = start(study, cell.seed)[0].eval()
        try:
            found[moment].load_state_dict(own)  # in float32, as the network is
        except RuntimeError:
            raise UsageError(f"training {cell.name}: its weights are of another network") from None
    return found
