"""Load a model by name as a TransformerLens bridge, and say what was loaded.

Names: those of `replib.sources` (the two embedded models, `tiny` with seeded random weights, the
planted ones with weights set by hand), any Hugging Face id with a revision, any local folder.
Weights are read from safetensors or GGUF files only, and code that comes with a checkpoint is never
run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources._bridge_builder import detect_tokenizer_bos_eos
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.models.device import _set_threads, find_device, find_dtype
from replib.models.hub import _check_revision, _first_line, _from_hub
from replib.models.sources import MADE_IN_MEMORY, SOURCES, folder_hash
from replib.models.tiny import _TINY_NOTE, _tiny_parts
from replib.models.unpack import _dequantised, _quiet


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, in the words that go into the record.

    `sha256` is that of the GGUF file for the embedded models, of the weight files for a local
    folder or a hub id, and of the parameters' bytes for `tiny` and the planted models.
    """

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


# Planted models: the module that builds each (it stands beside this one), and a note.
_PLANTED = {
    "planted-ioi": (
        "replib.planted",
        "A small transformer that does IOI by a circuit known in advance.",
    ),
    "planted-facts": (
        "replib.planted_facts",
        "A small transformer that recalls facts with one head and copies with another.",
    ),
    "planted-gate": (
        "replib.planted_gate",
        "A small transformer in which one direction decides between context and memory.",
    ),
    "planted-successor": (
        "replib.planted_successor",
        "A small transformer with a successor head and mod-10 features.",
    ),
}


_INFO: weakref.WeakKeyDictionary[TransformerBridge, ModelInfo] = weakref.WeakKeyDictionary()


def model_info(model: TransformerBridge) -> ModelInfo:
    """What `load_model` or `tiny_model` loaded into this bridge.

    Raises UsageError for a bridge that neither of them made.
    """
    if model not in _INFO:
        raise UsageError(
            "model_info: this model was not loaded by load_model or tiny_model, "
            "so its source is unknown"
        )
    return _INFO[model]


def last_loaded() -> TransformerBridge | None:
    """The model that was loaded last, of those that are still in use."""
    return next(reversed(list(_INFO)), None)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> TransformerBridge:
    """A model by name: eager attention (so that patterns have hooks), eval mode, no gradients.

    `name` is one of `KNOWN`, a local folder, or a Hugging Face id; `revision` (a branch, tag or
    commit; empty for the newest) is for the last only. `dtype` is "auto" or a key of `DTYPES`;
    `device` is "auto" or a torch device; `seed` is used by `tiny` only. The tokenizer keeps its
    own habit about BOS.

    Raises UsageError for a name, revision, dtype or device that cannot be had.
    """
    revision = revision or None
    torch_device = find_device(device)
    torch_dtype = find_dtype(dtype, torch_device)
    _set_threads()
    _check_revision(name, revision)
    if name == "tiny":
        model, tokenizer = _tiny_parts("gpt2", seed)
        where = _Where(source=f"random weights, GPT-2 architecture, seed {seed}", note=_TINY_NOTE)
    elif name in _PLANTED:
        module, note = _PLANTED[name]
        build = getattr(importlib.import_module(module), name.replace("-", "_"))
        model, tokenizer = build()
        where = _Where(source=f"weights set by hand in {module}", note=note)
    else:
        where = _locate(name, revision)
        model, tokenizer = _read_folder(name, where, torch_dtype)
    model = model.to(device=torch_device, dtype=torch_dtype)
    return _bridge(model, tokenizer, name, where)


def load_bare(
    name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model itself, without a bridge around it, for training.

    Raises UsageError as `load_model` does, and for a model that is made in memory.
    """
    if name in MADE_IN_MEMORY:
        raise UsageError(f"model {name!r} is made in memory and cannot be trained")
    torch_device = find_device(device)
    _set_threads()
    _check_revision(name, revision)
    where = _locate(name, revision)
    model, tokenizer = _read_folder(name, where, find_dtype(dtype, torch_device))
    return model.to(torch_device), tokenizer


def prepare_model(
    name: str,
    *,
    revision: str | None = None,
    before_download: Callable[[int], None] | None = None,
) -> Path | None:
    """Do the slow or failing steps of `load_model` now, short of loading.

    Dequantises an embedded model, downloads a hub model, checks a folder. A runner calls it before
    it starts a notebook, so that messages appear in the terminal and errors in one line.
    `before_download` is called with the number of parameters that the hub states, and may raise.

    Returns the folder that the model is read from, None if it is made in memory. Raises UsageError
    as `load_model` does.
    """
    _check_revision(name, revision)
    if name in MADE_IN_MEMORY:
        return None
    return _locate(name, revision, before_download).folder


# ---- from a name to a folder -------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """Where a model is and what is known of it before it is loaded."""

    source: str
    note: str
    folder: Path | None = None  # None: made in memory
    gguf_file: str | None = None
    revision: str | None = None
    sha256: str | None = None  # None: computed from the weights at load


def _locate(
    name: str, revision: str | None, before_download: Callable[[int], None] | None = None
) -> _Where:
    if name in SOURCES:
        source = SOURCES[name]
        return _Where(
            source=f"Python package {source.requirements[0].replace('==', ' ')}",
            note=source.note,
            folder=_dequantised(name),
            sha256=source.sha256,
        )
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _Where(source="local folder", note="", folder=folder, gguf_file=_gguf_file(folder))
    return _from_hub(name, revision, before_download)


def _gguf_file(folder: Path) -> str | None:
    """The one GGUF file to read in `folder`, or None when it has safetensors.

    Raises UsageError when the folder has neither, whatever else it has.
    """
    if any(folder.glob("*.safetensors")):
        for index in folder.glob("*.safetensors.index.json"):
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
                wrong = sorted(n for n in named if not n.endswith(".safetensors"))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise UsageError(f"{folder}: {index.name} has no map of weights to files") from None
            there = {path.name for path in folder.glob("*.safetensors")}
            if wrong or named - there:
                raise UsageError(
                    f"{folder}: {index.name} names {min(wrong or named - there)!r}, "
                    f"which is {'not a safetensors file' if wrong else 'not in the folder'}"
                )
        return None
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    pickled = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    )
    what = f"{len(found)} .gguf files" if found else "no .safetensors and no .gguf file"
    if pickled and not found:
        what += f", only {pickled[0]!r}, a pickled file that could run code and is never opened"
    raise UsageError(f"{folder}: {what}; a folder needs safetensors, or exactly one GGUF file")


# ---- from a folder to a bridge -----------------------------------------------------------------


def _read_folder(
    name: str, where: _Where, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer in `where.folder`, from its safetensors or GGUF file only.

    Raises UsageError when they cannot be loaded, and when weights are missing: Transformers would
    make those up at random and only say so.
    """
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if where.gguf_file is not None:
        safe["gguf_file"] = where.gguf_file
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(where.folder, **safe)
            model, loading = AutoModelForCausalLM.from_pretrained(
                where.folder,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                **safe,
            )
    except Exception as error:
        raise UsageError(
            f"model {name!r} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error
    absent = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if absent:
        raise UsageError(
            f"model {name!r} cannot be loaded: its files lack {len(absent)} weights that its "
            f"configuration asks for, {absent[0]!r} first"
        )
    return model, tokenizer


def _bridge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, where: _Where
) -> TransformerBridge:
    """Wrap a model in place and note what it is.

    The tokenizer is put on the finished bridge: handed to the builder it would be reloaded by name
    with BOS switched on, which fails for one made in memory and changes the habit of the others.
    """
    sha256 = where.sha256 or (where.folder and folder_hash(where.folder)) or _weights_sha256(model)
    model.eval()
    try:
        bridge = build_bridge_from_module(
            model,
            type(model).__name__,
            hf_config=model.config,
            model_name=name,
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        begins_and_ends = detect_tokenizer_bos_eos(tokenizer)
    except Exception as error:
        raise UsageError(
            f"model {name!r}: TransformerLens cannot wrap it: {_first_line(error)}"
        ) from error
    bridge.tokenizer = tokenizer
    cfg = bridge.cfg
    cfg.tokenizer_prepends_bos, cfg.tokenizer_appends_eos = begins_and_ends
    cfg.default_prepend_bos = cfg.tokenizer_prepends_bos
    bridge.eval()
    unembed = bridge.unembed.original_component
    if model.dtype == torch.float64 and "bias" in unembed._buffers:
        # The bridge adds zeros where a model has no bias; as float64 they would turn the logits
        # that are read, float32 whatever the model's type, into float64.
        unembed.bias = None
    for part in (model, bridge):
        for parameter in part.parameters():
            parameter.requires_grad_(False)
    _INFO[bridge] = ModelInfo(
        name=name,
        source=where.source,
        revision=where.revision,
        sha256=sha256,
        n_params=bridge.n_params_total,
        dtype=str(model.dtype).removeprefix("torch."),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        note=where.note,
    )
    return bridge


def _weights_sha256(model: PreTrainedModel) -> str:
    """One number for the weights of a model that was made in memory."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
