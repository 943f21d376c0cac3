"""Stored low-rank adapters: where they are, whether they are whole, how they are put on a model.

An adapter is a folder in the format of the package peft (`adapter_model.safetensors` and
`adapter_config.json`) with a card beside them, `training.json`: the model it belongs to, seed,
sha256 of the weights, hashes of the data and of the code, settings, training curve.
`replib train` writes it (`replib.finetuning`); a chapter reads it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.errors import UsageError
from replib.sources import model_slug, sha256_file

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "training.json"
# What decides the weights, given a model and the pinned packages.
CODE = ("facts.py", "intents.py", "finetuning.py")


@dataclass(frozen=True)
class Adapter:
    """One adapter, checked: its weights are those that the card describes."""

    folder: Path
    card: dict[str, Any]
    weights: dict[str, tuple[Tensor, Tensor]]  # module -> A [rank d_in], B [d_out rank]
    scale: float  # alpha / rank

    @property
    def is_stale(self) -> bool:
        """Has the code that trains it changed since?"""
        return self.card["code_sha256"] != code_sha256()


def code_sha256() -> str:
    """One hash of the modules that training depends on."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in CODE)).hexdigest()


def adapter_folder(root: Path, paper: str, model: str, intent_format: str, seed: int) -> Path:
    """`root`/notebooks/`paper`.adapters/`model's folder name`/`format`-`seed`."""
    folder = root / "notebooks" / f"{paper}.adapters" / model_slug(model)
    return folder / f"{intent_format}-{seed}"


def train_command(paper: str, model: str, intent_format: str, seed: int) -> str:
    return f"replib train {paper} --model {model} --format {intent_format} --seed {seed}"


def load_adapter(
    root: Path, paper: str, model: str, model_sha256: str | None, intent_format: str, seed: int
) -> Adapter:
    """Read and check a stored adapter; for which weights it was made, only if their hash is given.

    Raises:
        UsageError: it is missing, altered, or made for other weights; the line says how to make it.
    """
    folder = adapter_folder(root, paper, model, intent_format, seed)
    again = f"make it with: {train_command(paper, model, intent_format, seed)}"
    what = f"adapter {folder.parent.name}/{folder.name} of {paper}"
    absent = [name for name in (WEIGHTS, CONFIG, CARD) if not (folder / name).is_file()]
    if absent:
        raise UsageError(f"{what} is missing ({absent[0]} is not in {folder}); {again}")
    try:
        card = json.loads((folder / CARD).read_text())
        config = json.loads((folder / CONFIG).read_text())
        stored, made_for = card["sha256"], card["model_sha256"]
        scale = config["lora_alpha"] / config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{what}: its {CARD} or {CONFIG} cannot be read ({error}); {again}"
        ) from None
    found = sha256_file(folder / WEIGHTS)
    if found != stored:
        raise UsageError(
            f"{what} was altered: the sha256 of {WEIGHTS} is {found[:12]}…, not {stored[:12]}… as "
            f"its card says; {again}"
        )
    if model_sha256 is not None and made_for != model_sha256:
        raise UsageError(
            f"{what} was trained on other weights (sha256 {made_for[:12]}…, these are "
            f"{model_sha256[:12]}…); {again}"
        )
    tensors = load((folder / WEIGHTS).read_bytes())
    weights = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensor.float(),
            tensors[name.replace(".lora_A.", ".lora_B.")].float(),
        )
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    return Adapter(folder, card, weights, scale)


@contextmanager
def adapted(model: TransformerBridge, adapter: Adapter | None) -> Iterator[None]:
    """While it is open, the model has the adapter merged into its weights: W + alpha / r · B A.

    Afterwards the weights are bit-identical to those before. None leaves the model as it is.

    Raises:
        UsageError: the adapter is for modules that this model does not have.
    """
    network = model.original_model
    before: dict[str, Tensor] = {}
    try:
        for name, (a, b) in (adapter.weights if adapter else {}).items():
            weight = _weight(network, name)
            if weight is None or weight.shape != (b.shape[0], a.shape[1]):
                raise UsageError(
                    f"adapter {adapter.folder}: the model has no {name} of shape "
                    f"{(b.shape[0], a.shape[1])}"
                )
            before[name] = weight.detach().clone()
            delta = adapter.scale * (b @ a)
            weight.data.copy_(weight.data.float() + delta.to(weight.device))
        yield
    finally:
        for name, old in before.items():
            _weight(network, name).data.copy_(old)


def _weight(network: torch.nn.Module, name: str) -> Tensor | None:
    """The weight matrix of a module by its Hugging Face name, under TransformerLens' wrappers."""
    part: Any = network
    for step in name.split("."):
        inner = getattr(part, "original_component", None)
        part = getattr(part, step, None) if hasattr(part, step) else getattr(inner, step, None)
        if part is None:
            return None
    part = getattr(part, "original_component", part)
    return getattr(part, "weight", None)
