"""A Hugging Face model as a TransformerLens bridge, and what is known of it for the record."""

import hashlib
import sys
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources._bridge_builder import detect_tokenizer_bos_eos
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from replib.errors import UsageError, first_line
from replib.models.finite import check_weights, try_pass, watch_logits
from replib.models.sources import Place, folder_hash
from replib.prompts.tokens import Limits, made_ready


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, in the words that go into the record. `sha256` is that of the GGUF file for
    the embedded models, of the weight files for a local folder or a hub id, and of the parameters'
    bytes for `tiny` and the planted models."""

    name: str
    source: str
    revision: str | None
    sha256: str
    n_params: int  # tied parameters counted once
    dtype: str
    n_layers: int
    n_heads: int  # query heads in a layer
    note: str

    def asdict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


# Rotary scalings that begin at a length and depend on the longest text read so far.
_GROWING = ("dynamic", "longrope")
_PROBE = "The stones by the stream were still wet."
_INFO: weakref.WeakKeyDictionary[TransformerBridge, ModelInfo] = weakref.WeakKeyDictionary()


def model_info(model: TransformerBridge) -> ModelInfo:
    """What `load_model` or `tiny_model` loaded into this bridge; UsageError if neither did."""
    if model not in _INFO:
        by = "load_model or tiny_model"
        raise UsageError(f"model_info: this model was not loaded by {by}, so its source is unknown")
    return _INFO[model]


def last_loaded() -> TransformerBridge | None:
    """The model that was loaded last, of those that are still in use."""
    return next(reversed(list(_INFO)), None)


def bridge_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, where: Place
) -> TransformerBridge:
    """Wrap a model in place and note what it is. The tokenizer is put on the finished bridge:
    handed to the builder it would be reloaded by name with BOS switched on, which fails for one
    made in memory and changes the habit of the others.

    UsageError for a model that cannot be wrapped, has weights that are not finite, or cannot read a
    short text; from then on also for any forward pass whose logits are not finite, and for texts
    longer than what its positions were made for.
    """
    sha256 = where.sha256 or (where.folder and folder_hash(where.folder)) or _weights_sha256(model)
    model.eval()
    check_weights(model, name)
    watch_logits(model, name)
    n_fixed = _watch_rotary(model, name)
    try:
        bridge = build_bridge_from_module(
            model, type(model).__name__, hf_config=model.config, model_name=name
        )
        rows = model.get_input_embeddings().weight.shape[0]
        n_ctx = min(filter(None, (context_length(model.config), n_fixed)), default=None)
        said = made_ready(tokenizer, Limits(rows, n_ctx))
        if n_fixed is None:
            _watch_length(model, name, n_ctx)
        tokenizer.padding_side = "right"
        begins_and_ends = detect_tokenizer_bos_eos(tokenizer)
    except UsageError as error:
        raise UsageError(f"model {name!r}: {error}") from None
    except Exception as error:
        problem = f"TransformerLens cannot wrap it: {first_line(error)}"
        raise UsageError(f"model {name!r}: {problem}") from error
    bridge.tokenizer = tokenizer
    cfg = bridge.cfg
    cfg.tokenizer_prepends_bos, cfg.tokenizer_appends_eos = begins_and_ends
    cfg.default_prepend_bos = cfg.tokenizer_prepends_bos
    cfg.n_ctx = n_ctx or sys.maxsize  # nothing limits a state-space model
    bridge.eval()
    unembed = bridge.unembed.original_component
    if model.dtype == torch.float64 and "bias" in unembed._buffers:
        # The bridge adds zeros where a model has no bias; as float64 they would turn the logits
        # that are read, float32 whatever the model's type, into float64.
        unembed.bias = None
    for part in (model, bridge):
        part.requires_grad_(False)
    ids = [i for i in tokenizer(_PROBE).input_ids if i < rows] or [0]
    try_pass(model, bridge.blocks, ids[: cfg.n_ctx], name)
    _INFO[bridge] = ModelInfo(
        name=name,
        source=where.source,
        revision=where.revision,
        sha256=sha256,
        n_params=bridge.n_params_total,
        dtype=str(model.dtype).removeprefix("torch."),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        note=" ".join(filter(None, (where.note, said))),
    )
    return bridge


def _watch_rotary(model: PreTrainedModel, name: str) -> int | None:
    """From now on, texts are refused that are longer than a model's rotary positions were made for,
    where these are scaled by the longest text so far: what is said of one text would depend on the
    others. Returns that length, None where there is none."""
    given = getattr(model.config, "rope_parameters", None) or {}
    each = [given, *(part for part in given.values() if isinstance(part, dict))]
    growing = [part for part in each if part.get("rope_type") in _GROWING]
    if not growing:
        return None
    kind, most = growing[0]["rope_type"], model.config.max_position_embeddings
    if kind == "longrope":
        most = growing[0].get("original_max_position_embeddings") or most

    def check(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        places = args[1] if len(args) > 1 else kwargs["position_ids"]
        if (n := int(places.max()) + 1) > most:
            raise UsageError(
                f"model {name!r}: {n} tokens at once, and beyond {most} its rotary positions "
                f"({kind!r}) change with the longest text so far; choose shorter texts"
            )

    for module in model.modules():
        if hasattr(module, "rope_type"):
            module.register_forward_pre_hook(check, with_kwargs=True)
    return most


def _watch_length(model: PreTrainedModel, name: str, n_ctx: int | None) -> None:
    """From now on, texts are refused that are longer than what a model's positions were made for:
    some models fail beyond it, others go on and say nothing of use."""

    def check(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        places, ids = kwargs.get("position_ids"), args[0] if args else kwargs.get("input_ids")
        n = ids.shape[-1] if places is None and ids is not None else 0
        n = n if places is None else int(places.max()) + 1
        if n > n_ctx:
            raise UsageError(
                f"model {name!r}: {n} tokens at once, and it reads {n_ctx}; choose shorter texts"
            )

    if n_ctx is not None:
        model.register_forward_pre_hook(check, with_kwargs=True)


def context_length(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads at once: what its positions were made for, stretched where its
    configuration stretches them. None for models without positions, such as state-space models."""
    config = config.get_text_config()
    n_ctx = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if n_ctx and rope.get("rope_type") in ("linear", "dynamic", "yarn"):
        made_for = rope.get("original_max_position_embeddings") or n_ctx
        n_ctx = max(n_ctx, int(made_for * rope.get("factor", 1)))
    return n_ctx


def _weights_sha256(model: PreTrainedModel) -> str:
    """One number for the weights of a model that was made in memory."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
