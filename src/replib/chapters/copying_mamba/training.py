"""Train one cell of the grid, and read what was stored (Jelassi et al., 2402.01032, Sec. 3).

As in the released code: AdamW with weight decay 0.1, a warm-up, gradients clipped at norm 1, loss
on the answer only. Unlike there the rate is constant in between, so that the number of examples
until a network can copy does not depend on the budget. Weight decay spares vectors and the decay
rates of state-space models, as Mamba's own code does. The data depend on study and seed only, so
all architectures of one seed read the same strings in the same order, but for Mamba, which begins
with short ones.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.scans import fast_scans
from replib.chapters.copying_mamba.strings import TASKS, Strings, answer_logits
from replib.chapters.copying_mamba.training_grid import (
    BATCH,
    CURRICULUM,
    DECAY,
    EVERY,
    SOLVED,
    STUDIES,
    WARMUP,
    Cell,
    Study,
    settings,
)
from replib.errors import UsageError
from replib.files import write_whole
from replib.models.device import one_thread

N_VALIDATION = 128  # strings of the largest length of training
_VALIDATION_SEED = 10**6  # no training has it
DIVERGED = 99.0  # nats


def strings_for(study: Study, length: int, n: int, seed: int) -> Strings:
    """`n` strings of a study's task; with one seed always the same."""
    return TASKS[study.task](n, length, torch.Generator().manual_seed(seed))


def train(
    cell: Cell,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    device: str = "cpu",
) -> tuple[nn.Module, dict[str, list]]:
    """Train a cell from nothing. Returns the network and its curve.

    The rate is constant after the warm-up and falls to 0 in the last `DECAY` steps. These begin
    when `SOLVED` of the validation strings are right at two points in a row (reported seeds only),
    or so that the cell's budget is not exceeded: a network that can do its task costs no more.

    The curve has a point every `EVERY` steps, on validation strings of the largest length of
    training: `examples` seen, training loss since the last point, validation `loss` (nats a token
    of the answer), `char` and `string` accuracy given the true tokens before. `stop_after` ends
    early on the same schedule. One thread and one seed give one result, to the last bit; a loss
    that is not a number is `DIVERGED`.
    """
    study, steps = STUDIES[cell.study], cell.steps
    network = build(cell.architecture, cell.seed, cell.start).to(device)
    optimizer = _optimizer(network, cell.rate)
    decay = min(DECAY, steps // 5)
    ends = steps  # the step after which the rate is 0
    data = torch.Generator().manual_seed(cell.seed)
    validation = strings_for(study, study.lengths[1], N_VALIDATION, _VALIDATION_SEED).to(device)
    curve: dict[str, list] = {key: [] for key in ("examples", "train", "loss", "char", "string")}
    losses: list[torch.Tensor] = []
    network.train()
    step = 0
    with fast_scans(network):
        while step < min(ends, stop_after or steps):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = cell.rate * height(step, ends, decay)
            low, high = lengths_at(cell, step)
            length = int(torch.randint(low, high + 1, (), generator=data))
            batch = TASKS[study.task](BATCH, length, data).to(device)
            loss = _loss(answer_logits(network, batch), batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
            if step % EVERY == 0 or step == ends:
                network.eval()
                _add_point(curve, step, losses, network, validation)
                network.train()
                losses.clear()
                say(
                    f"step {step} of {steps} at most: loss {curve['loss'][-1]:.3f}, "
                    f"strings right {curve['string'][-1]:.0%}"
                )
                if cell.is_reported and ends == steps and is_solved(curve["string"]):
                    ends = min(steps, step + decay)
    network.eval()
    return network, curve


def height(step: int, ends: int, decay: int) -> float:
    """The learning rate of a step, counted from 1, as a share of the cell's: it rises for `WARMUP`
    steps, and falls to 0 in the `decay` steps that lead to the step `ends`."""
    return min(step / WARMUP, 1.0, (ends - step + 1) / decay)


def is_solved(strings: Sequence[float]) -> bool:
    """Are the last two points of a curve of string accuracy at `SOLVED` or above?"""
    return len(strings) > 1 and min(strings[-2:]) >= SOLVED


def lengths_at(cell: Cell, step: int) -> tuple[int, int]:
    """The shortest and the longest strings at a step. Mamba's grow, from the shortest to the full
    length of its study, in the first `CURRICULUM` of its steps; all others have all lengths."""
    low, high = STUDIES[cell.study].lengths
    if cell.architecture != "mamba":
        return low, high
    grown = min(1.0, step / (CURRICULUM * cell.steps))
    return low, low + round(grown * (high - low))


def _optimizer(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    # By name: transformers 5 no longer marks A_log, which is a matrix in Mamba.
    spared = [p for n, p in network.named_parameters() if p.ndim < 2 or n.endswith("A_log")]
    ids = {id(p) for p in spared}
    return torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if id(p) not in ids], "weight_decay": 0.1},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )


def _loss(logits: torch.Tensor, strings: Strings) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), strings.answers.flatten())


@torch.no_grad()
def _add_point(
    curve: dict[str, list],
    step: int,
    losses: list[torch.Tensor],
    network: nn.Module,
    validation: Strings,
) -> None:
    logits = answer_logits(network, validation)
    right = (logits.argmax(-1) == validation.answers).double()
    point = {
        "examples": step * BATCH,
        "train": torch.stack(losses).mean().item(),
        "loss": _loss(logits, validation).item(),
        "char": right.mean().item(),
        "string": right.prod(1).mean().item(),
    }
    for key, value in point.items():
        curve[key].append(round(value, 6) if math.isfinite(value) else DIVERGED)


def train_cell(
    root: Path, cell: Cell, device: str = "cpu", say: Callable[[str], None] = lambda line: None
) -> Path:
    """Train a cell from nothing and store it in place of an earlier one; returns its card. Weights
    are stored in float16, of reported seeds only."""
    began = time.process_time()
    with one_thread():
        network, curve = train(cell, say=say, device=device)
    weights = save({k: v.half().cpu().contiguous() for k, v in _state(network).items()})
    if cell.is_reported:
        write_whole(stored.weights_path(root, cell), weights)
    card = {
        "cell": asdict(cell),
        "settings": settings(cell),
        "sha256": hashlib.sha256(weights).hexdigest() if cell.is_reported else "",
        "code_sha256": stored.code_sha256(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_s": round(time.process_time() - began),
        "curve": curve,
    }
    path = stored.card_path(root, cell)
    write_whole(path, (json.dumps(card) + "\n").encode())
    return path


def load_network(root: Path, cell: Cell) -> nn.Module:
    """The network of a stored cell, in float32; raises NotStored if it is missing or altered."""
    stored.read_card(root, cell)
    return _network(cell, load(stored.weights_path(root, cell).read_bytes()))


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Each tensor under its first name: embeddings may serve as read-out too."""
    own: dict[int, str] = {}
    for name, value in network.state_dict().items():
        own.setdefault(value.data_ptr(), name)
    return {name: network.state_dict()[name] for name in own.values()}


def _network(cell: Cell, state: Mapping[str, torch.Tensor]) -> nn.Module:
    network = build(cell.architecture, cell.seed, cell.start)
    own = _state(network)
    if set(own) != set(state):
        raise UsageError(f"training {cell.name}: its weights are those of another architecture")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    return network.eval()
