"""Low-rank adapters merged into a model's weights, and taken out again without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob.stored import WEIGHTS, check_adapter, code_sha256
from replib.errors import UsageError


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


def load_adapter(
    root: Path, model: str, model_sha256: str | None, intent_format: str, seed: int
) -> Adapter:
    """Read and check a stored adapter; raises NotStored as `check_adapter` does."""
    folder, card, config = check_adapter(root, model, model_sha256, intent_format, seed)
    tensors = load((folder / WEIGHTS).read_bytes())
    weights = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensor.float(),
            tensors[name.replace(".lora_A.", ".lora_B.")].float(),
        )
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    return Adapter(folder, card, weights, config["lora_alpha"] / config["r"])


@contextmanager
def adapted(model: TransformerBridge, adapter: Adapter | None) -> Iterator[None]:
    """While it is open, the model has the adapter merged into its weights: W + alpha / r · B A.
    Afterwards the weights are bit-identical to those before. None leaves the model as it is. Raises
    UsageError for an adapter of modules that this model does not have."""
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
        part = getattr(part, step, getattr(inner, step, None))
    return getattr(getattr(part, "original_component", part), "weight", None)
