"""Train one cell of the grid, and read what was stored (2212.07677, released code).

Adam with b1 0.9 and b2 0.98 at a constant rate, 2,048 fresh tasks a step, half the mean squared
error at the query. Only the norm of the whole gradient is limited, for one and two layers to 0.001,
which Adam undoes but for the steps' relative sizes.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor, nn

from replib.chapters.icl_gradient_descent import stored, weights
from replib.chapters.icl_gradient_descent.network import Form, Layers, Perceptron
from replib.chapters.icl_gradient_descent.tasks import draw
from replib.chapters.icl_gradient_descent.training_grid import (
    BATCH,
    STUDIES,
    Cell,
    Study,
    settings,
)
from replib.chapters.icl_gradient_descent.watching import is_one_layer, point, watched
from replib.errors import UsageError
from replib.files import write_whole
from replib.models.device import one_thread


@dataclass(frozen=True)
class Trained:
    """A network and how it came about."""

    seed: int
    network: nn.Module
    curve: dict[str, list]  # `step`, `loss` and what else `watching.point` measures
    matrices: Float[Tensor, "point d_token d_token"]  # M along the curve, of one linear layer
    cpu_s: float = 0.0  # of a stored training: how long it took on one core
    is_stale: bool = False  # of a stored training: has the code that trains changed since?


def start(study: Study, seed: int) -> nn.Module:
    """The network of a study before its first step."""
    return Perceptron(seed) if study.perceptron else Layers(Form(**study.form), seed)


def train(
    cell: Cell, stop_after: int | None = None, say: Callable[[str], None] = lambda line: None
) -> Trained:
    """Train a cell from nothing. One thread and one seed give one result, to the last bit.
    `stop_after` ends early; raises UsageError for fewer steps than a curve's second point is at.
    """
    study = STUDIES[cell.study]
    steps = stop_after or study.steps
    if steps < study.every:
        raise UsageError(f"{steps} steps; give at least {study.every}, a curve's second point")
    network = start(study, cell.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=study.rate, betas=(0.9, 0.98))
    data = torch.Generator().manual_seed(cell.seed)
    course = Course(network)
    for step in range(1, steps + 1):
        tasks = draw(BATCH, data)
        if study.shuffled:
            tasks = tasks.shuffled(data)
        loss = 0.5 * (network(network.read(tasks)) - tasks.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if study.frozen:
            for weight in network.parameters():
                weight.grad[0] = 0.0  # of the first layer
        nn.utils.clip_grad_norm_(network.parameters(), study.clip)
        optimizer.step()
        if step % study.every == 0:
            course.add(step)
            say(f"step {step} of {steps}: loss {course.curve['loss'][-1]:.4f}")
    return course.trained(cell.seed)


class Course:
    """The curve of a network whose weights change, from its first point on."""

    def __init__(self, network: nn.Module):
        self.network, self.tasks = network, watched()
        self.curve: dict[str, list] = {}
        self.matrices: list[Tensor] = []
        self.add(0)

    def add(self, step: int) -> None:
        """A point of the curve, and of one linear layer its matrix M."""
        for key, value in {"step": step, **point(self.network, self.tasks)}.items():
            self.curve.setdefault(key, []).append(value)
        if is_one_layer(self.network):
            self.matrices.append(weights.combined(self.network))

    def trained(self, seed: int) -> Trained:
        matrices = torch.stack(self.matrices) if self.matrices else torch.zeros(0, 1, 1)
        return Trained(seed, self.network.eval(), self.curve, matrices)


def train_cell(root: Path, cell: Cell, say: Callable[[str], None] = lambda line: None) -> Path:
    """Train a cell from nothing and store it in place of an earlier one; returns its card. Weights
    are stored in float32, the matrices along the curve in float16."""
    began = time.process_time()
    with one_thread():
        made = train(cell, say=say)
    kept = {key: value.contiguous() for key, value in made.network.state_dict().items()}
    kept["matrices"] = made.matrices.half()
    content = save(kept)
    write_whole(stored.weights_path(root, cell), content)
    card = {
        "cell": asdict(cell),
        "settings": settings(cell.study),
        "sha256": hashlib.sha256(content).hexdigest(),
        "code_sha256": stored.code_sha256(),
        "versions": {"torch": version("torch")},
        "parameters": sum(p.numel() for p in made.network.parameters()),
        "cpu_s": math.ceil(time.process_time() - began),
        "curve": made.curve,
    }
    path = stored.card_path(root, cell)
    write_whole(path, (json.dumps(card, indent=1) + "\n").encode())
    return path


def read(root: Path, cell: Cell) -> Trained:
    """A stored cell; raises NotStored if it is missing or altered."""
    card = stored.read_card(root, cell)
    kept = load(stored.weights_path(root, cell).read_bytes())
    matrices = kept.pop("matrices").float()
    network = start(STUDIES[cell.study], cell.seed)
    if set(kept) != set(network.state_dict()):
        raise UsageError(f"training {cell.name}: its weights are those of another network")
    network.load_state_dict(kept)
    about = card["cpu_s"], stored.is_stale(card)
    return Trained(cell.seed, network.eval(), card["curve"], matrices, *about)
