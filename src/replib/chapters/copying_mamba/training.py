"""Train one cell of the grid, and read what was stored (Jelassi et al., 2402.01032, Sec. 3).

As in the released code: AdamW with weight decay 0.1, a linear schedule after a warm-up, gradients
clipped at norm 1, loss on the answer only. Weight decay spares vectors and the decay rates of
state-space models, as Mamba's own code does. The data depend on study and seed only, so all
architectures of one seed read the same strings in the same order.
"""

import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    EVERY,
    STUDIES,
    WARMUP,
    Cell,
    Study,
    settings,
)
from replib.errors import UsageError
from replib.files import write_whole
from replib.models.device import one_thread

N_VALIDATION = 256  # strings of the largest length of training
_VALIDATION_SEED = 10**6  # no training has it
DIVERGED = 99.0  # nats


def strings_for(study: Study, length: int, n: int, seed: int) -> Strings:
    """`n` strings of a study's task; with one seed always the same."""
    return TASKS[study.task](n, length, torch.Generator().manual_seed(seed))


def train(
    cell: Cell,
    start: dict[str, torch.Tensor] | None = None,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    device: str = "cpu",
) -> tuple[nn.Module, dict[str, list]]:
    """Train a cell from nothing, or from given weights. Returns the network and its curve.

    The curve has a point every `EVERY` steps, on validation strings of the largest length of
    training: `examples` seen, training loss since the last point, validation `loss` (nats a token
    of the answer), `char` and `string` accuracy given the true tokens before. `stop_after` ends
    early on the same schedule. One thread and one seed give one result, to the last bit; a loss
    that is not a number is `DIVERGED`.
    """
    study = STUDIES[cell.study]
    network = build(cell.architecture, cell.seed).to(device)
    if start is not None:
        network.load_state_dict(start)
    optimizer, schedule = _optimizer(network, cell.rate, study.steps)
    data = torch.Generator().manual_seed(cell.seed)
    validation = strings_for(study, study.lengths[1], N_VALIDATION, _VALIDATION_SEED)
    curve: dict[str, list] = {key: [] for key in ("examples", "train", "loss", "char", "string")}
    losses: list[torch.Tensor] = []
    low, high = study.lengths
    network.train()
    with fast_scans(network):
        for step in range(1, (stop_after or study.steps) + 1):
            length = int(torch.randint(low, high + 1, (), generator=data))
            batch = TASKS[study.task](BATCH, length, data).to(device)
            loss = _loss(answer_logits(network, batch), batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if step % EVERY == 0:
                network.eval()
                _add_point(curve, step, losses, network, validation.to(device))
                network.train()
                losses.clear()
                say(
                    f"step {step} of {study.steps}: loss {curve['loss'][-1]:.3f}, "
                    f"strings right {curve['string'][-1]:.0%}"
                )
    network.eval()
    return network, curve


def _optimizer(
    network: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    # By name: transformers 5 no longer marks A_log, which is a matrix in Mamba.
    spared = [p for n, p in network.named_parameters() if p.ndim < 2 or n.endswith("A_log")]
    ids = {id(p) for p in spared}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if id(p) not in ids], "weight_decay": 0.1},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, max(0.0, (steps - step) / (steps - WARMUP))),
    )
    return optimizer, schedule


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


def train_here(
    cells: Sequence[Cell], stop_after: int | None = None
) -> list[tuple[nn.Module, dict[str, list]]]:
    """Networks and curves of cells that are trained now, one on each core, in processes of their
    own; nothing is stored."""
    workers = min(len(cells), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        made = list(pool.map(_train_alone, cells, [stop_after] * len(cells)))
    return [(_network(cell, load(state)), c) for cell, (state, c) in zip(cells, made, strict=True)]


def _train_alone(cell: Cell, stop_after: int | None) -> tuple[bytes, dict[str, list]]:
    with one_thread():
        network, curve = train(cell, stop_after=stop_after)
    return save({k: v.contiguous() for k, v in _state(network).items()}), curve


def train_cell(
    root: Path, cell: Cell, device: str = "cpu", say: Callable[[str], None] = lambda line: None
) -> Path:
    """Train a cell from nothing and store it in place of an earlier one; returns its card. Weights
    are stored in float16. A study that starts with another one's weights takes those of the same
    seed, and to choose a rate those of the first reported seed; raises NotStored without them."""
    study = STUDIES[cell.study]
    start, started_from, start_sha256 = None, "", ""
    if study.start:
        seed = cell.seed if cell.is_reported else study.seeds[0]
        some = stored.reported(root, study.start, cell.architecture)
        first = next((c for c in some if c.seed == seed), None)
        if first is None:
            raise UsageError(f"cell {cell.name}: study {study.start} has no seed {seed}")
        start = load_network(root, first).state_dict()
        started_from = first.name
        start_sha256 = stored.read_card(root, first)["sha256"]
    began = time.process_time()
    with one_thread():
        network, curve = train(cell, start, say=say, device=device)
    weights = save({k: v.half().cpu().contiguous() for k, v in _state(network).items()})
    if cell.is_reported:
        write_whole(stored.weights_path(root, cell), weights)
    card = {
        "cell": asdict(cell),
        "settings": settings(cell.study),
        "start": started_from,
        "start_sha256": start_sha256,
        "sha256": hashlib.sha256(weights).hexdigest() if cell.is_reported else "",
        "code_sha256": stored.code_sha256(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_s": round(time.process_time() - began),
        "curve": curve,
    }
    path = stored.card_path(root, cell)
    write_whole(path, (json.dumps(card, indent=1) + "\n").encode())
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
    network = build(cell.architecture, cell.seed)
    own = _state(network)
    if set(own) != set(state):
        raise UsageError(f"training {cell.name}: its weights are those of another architecture")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    return network.eval()
