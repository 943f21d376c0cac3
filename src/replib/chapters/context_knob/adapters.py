"""Low-rank adapters merged into a model's weights, and taken out again without a trace."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from IPython.display import Markdown
from safetensors.torch import load
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob.stored import (
    INTENT_FORMATS,
    WEIGHTS,
    check_adapter,
    code_sha256,
)
from replib.errors import UsageError
from replib.files import find_root
from replib.models.bridge import model_info
from replib.models.sources import MADE_IN_MEMORY


@dataclass(frozen=True)
class Adapter:
    """One adapter, checked: its weights are those that the card describes."""

    folder: Path
    card: dict[str, Any]
    weights: dict[str, tuple[Tensor, Tensor]]  # module -> A [rank d_in], B [d_out rank]
    scale: float  # alpha / rank

    @property
    def is_trained(self) -> bool:
        """Or is it set by hand, as that of a planted model?"""
        return "curve" in self.card

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


def load_adapters(
    model: TransformerBridge, model_name: str, seeds: Sequence[int]
) -> dict[str, list[Adapter | None]]:
    """The stored adapters of a model: for each intent format one a seed. The planted model has its
    own; another one made in memory has none and stands for itself ([None]). Raises NotStored where
    one is missing."""
    if model_name == "planted-gate":
        from replib.chapters.context_knob.planted import planted_adapters

        return planted_adapters(model.tokenizer)
    if model_name in MADE_IN_MEMORY:
        return {name: [None] for name in INTENT_FORMATS}
    root, sha256 = find_root(), model_info(model).sha256
    return {
        name: [load_adapter(root, model_name, sha256, name, seed) for seed in seeds]
        for name in INTENT_FORMATS
    }


def validation_losses(
    adapters: Mapping[str, Sequence[Adapter | None]],
) -> tuple[list[int], dict[str, list[float]]]:
    """Training steps, and each adapter's loss at them on the validation relation, in nats a token;
    one line of NaN where there is no adapter."""
    cards = [one.card for some in adapters.values() for one in some if one and one.is_trained]
    if not cards:
        return [0], {"no adapter": [float("nan")]}
    steps = [step for step, _ in cards[0]["curve"]["validation"]]
    return steps, {
        f"{card['intent_format']}, seed {card['seed']}": [
            loss for _, loss in card["curve"]["validation"]
        ]
        for card in cards
    }


def note(adapters: Mapping[str, Sequence[Adapter | None]]) -> Markdown:
    """Were the adapters trained by the code as it is now?"""
    some = [one for of_format in adapters.values() for one in of_format if one]
    if not some or not some[0].is_trained:
        text = "This model is made in memory: "
        text += "its adapters are too." if some else "it has no adapter, and stands for itself."
        return Markdown(text)
    if stale := [one.folder.name for one in some if one.is_stale]:
        return Markdown(
            f"**Older than the code that trains them:** {', '.join(stale)}. Train them again to be "
            "sure that they are what this code makes."
        )
    return Markdown("All adapters were trained by the code as it is now.")


@contextmanager
def adapted(
    model: TransformerBridge, adapter: Adapter | None, strength: float = 1.0
) -> Iterator[None]:
    """While it is open, the model has the adapter merged into its weights: W + alpha / r · B A, the
    second part times `strength`.
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
            delta = strength * adapter.scale * (b @ a)
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
