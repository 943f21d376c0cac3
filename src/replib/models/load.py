"""Load a model by name as a TransformerLens bridge, and say what was loaded.

Weights are read from safetensors or GGUF files only, and code that comes with a checkpoint is never
run.
"""

import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from replib.errors import UsageError, first_line, one_line
from replib.models.bridge import bridge_for
from replib.models.device import find_device, find_dtype
from replib.models.finite import check_weights, watch_logits
from replib.models.hub import IS_ADAPTER, check_revision, from_hub
from replib.models.sources import (
    MADE_IN_MEMORY,
    NETWORKS,
    PLANTED,
    SOURCES,
    Place,
    find_gguf,
    planted_module,
)
from replib.models.threads import n_threads
from replib.models.tiny import TINY_NOTE, tiny_parts
from replib.models.unpack import load_dequantised, not_read, quiet

log = logging.getLogger(__name__)
# Masks and angles that older files carry and the library computes by itself.
_BUFFERS = re.compile(
    r"(\.attn|\.attention)\.(masked_)?bias$|(^|\.)(position_ids|rotary_emb\.inv_freq)$"
)


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
    `device` is "auto" or a torch device; `seed` is used by `tiny` only. UsageError for what cannot
    be had. The tokenizer keeps its own habit about BOS.
    """
    revision = revision or None
    torch_device = find_device(device)
    torch_dtype = find_dtype(dtype, torch_device)
    torch.set_num_threads(n_threads())
    check_revision(name, revision)
    if name == "tiny":
        model, tokenizer = tiny_parts("gpt2", seed)
        where = Place(source=f"random weights, GPT-2 architecture, seed {seed}", note=TINY_NOTE)
    elif name in PLANTED:
        module = importlib.import_module(planted_module(name))
        model, tokenizer = getattr(module, name.replace("-", "_"))()
        where = Place(source=f"weights set by hand in {module.__name__}", note=module.NOTE)
    else:
        where = _locate(name, revision)
        model, tokenizer = _read_folder(name, where, torch_dtype)
    model = model.to(device=torch_device, dtype=torch_dtype)
    return bridge_for(model, tokenizer, name, where)


def load_bare(
    name: str, *, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model itself, without a bridge around it, for training. Raises UsageError as
    `load_model` does, and for a model that is made in memory."""
    if name in MADE_IN_MEMORY:
        raise UsageError(f"model {name!r} is made in memory and cannot be trained")
    torch_device = find_device(device)
    torch.set_num_threads(n_threads())
    model, tokenizer = _read_folder(name, _locate(name, None), find_dtype(dtype, torch_device))
    check_weights(model, name)
    watch_logits(model, name)
    return model.to(torch_device), tokenizer


def prepare_model(
    name: str, *, revision: str | None = None, before_download: Callable[[int], None] | None = None
) -> Path | None:
    """Do the slow or failing steps of `load_model` now: dequantise an embedded model, download a
    hub model, check a folder. Before a notebook starts, messages still appear in the terminal.

    `before_download` is called with the number of parameters that the hub states, and may raise.
    Returns the folder that the model is read from, None if it is made in memory. Raises UsageError
    as `load_model` does.
    """
    check_revision(name, revision)
    if name in MADE_IN_MEMORY or name in NETWORKS:
        return None
    return _locate(name, revision, before_download).folder


def _locate(
    name: str, revision: str | None, before_download: Callable[[int], None] | None = None
) -> Place:
    if name in NETWORKS:
        raise UsageError(f"{name} is no language model; it belongs to {NETWORKS[name]}")
    if name in SOURCES:
        source = SOURCES[name]
        package = f"Python package {source.requirements[0].replace('==', ' ')}"
        return Place(package, source.note, folder=load_dequantised(name), sha256=source.sha256)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _without_adapter(name, Place("local folder", folder=folder))
    return _without_adapter(name, from_hub(name, revision, before_download))


def _without_adapter(name: str, place: Place) -> Place:
    """The place of a model's files, with a note where an adapter beside them is left out."""
    kinds = ("adapter_config.json", "adapter_model.*")
    adapter = [path.name for kind in kinds for path in sorted(place.folder.glob(kind))]
    every = [path for kind in ("safetensors", "gguf") for path in place.folder.glob(f"*.{kind}")]
    if adapter and all(path.name in adapter for path in every):
        raise UsageError(f"model {name!r} {IS_ADAPTER}")
    note = place.note
    if adapter:
        note = f"The adapter beside the model ({adapter[0]}) is left out."
        log.warning("model %r: %s", name, note)
    return replace(place, note=note, gguf_file=find_gguf(place.folder))


def skeleton(
    name: str, *, revision: str | None = None
) -> tuple[TransformerBridge | None, PreTrainedTokenizerBase]:
    """The modules of a model in a folder or on the hub, without weights, and its tokenizer: what
    its architecture offers, known before anything is run. UsageError as `load_model` for a
    tokenizer, and for an architecture that is not for this; None where only loading would tell."""
    where = _locate(name, revision)
    tokenizer, kind = _tokenizer(name, where), "it"
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(where.folder, **_safe(where))
            kind = type(config).__name__.removesuffix("Config")
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            _check_causal(name, model)
            kind = type(model).__name__
            return build_bridge_from_module(
                model, kind, hf_config=config, model_name=name
            ), tokenizer
    except UsageError:
        raise
    except Exception as error:
        text = first_line(error)
        if "Unrecognized configuration class" in text:
            raise UsageError(f"model {name!r}: {kind} is not a causal language model") from None
        if "Unsupported architecture" in text:
            raise UsageError(f"model {name!r}: TransformerLens does not know {kind}") from None
    return None, tokenizer


def _check_causal(name: str, model: PreTrainedModel) -> None:
    causal = {part.is_causal for part in model.modules() if hasattr(part, "is_causal")}
    if causal == {False}:  # BERT; an encoder of images beside a decoder may be
        sees = "attends to what comes after as well, which no chapter can use"
        raise UsageError(f"model {name!r}: {type(model).__name__} {sees}")


def _safe(where: Place) -> dict[str, Any]:
    """How anything is read from a folder: no network, no code."""
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return safe if where.gguf_file is None else safe | {"gguf_file": where.gguf_file}


def _tokenizer(name: str, where: Place) -> PreTrainedTokenizerBase:
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(where.folder, **_safe(where))
    except Exception as error:
        problem = f"{type(error).__name__}: {one_line(str(error), 400)}"
        raise UsageError(f"the tokenizer of model {name!r} cannot be loaded: {problem}") from error


def _read_folder(
    name: str, where: Place, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer in `where.folder`, from its safetensors or GGUF file only, without an
    adapter that lies beside them. UsageError also where weights are missing, which Transformers
    would make up at random, or have no place in the model, which it would drop, and where they stay
    quantised: the modules then compute with other matrices than those that are read."""
    tokenizer = _tokenizer(name, where)
    try:
        with quiet():
            model, loading = AutoModelForCausalLM.from_pretrained(
                where.folder,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                adapter_kwargs={"subfolder": "no adapter"},  # it looks for one there, in vain
                **_safe(where),
            )
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"model {name!r} cannot be loaded: {problem}") from error
    _check_causal(name, model)
    absent = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if absent:
        problem = f"its files lack {len(absent)} weights that its configuration asks for"
        raise UsageError(f"model {name!r} cannot be loaded: {problem}, {absent[0]!r} first")
    more = [key for key in sorted(loading["unexpected_keys"]) if not _BUFFERS.search(key)]
    if where.gguf_file is not None:
        more += not_read(where.folder / where.gguf_file, model)
    if more:
        problem = f"its files have {len(more)} weights or settings that would be left out"
        mend = "config.json may be another model's" if where.gguf_file is None else ""
        mend = mend or "Transformers does not read them from GGUF; give safetensors"
        raise UsageError(f"model {name!r}: {problem}, {more[0]!r} first; {mend}")
    if getattr(model, "is_quantized", False) and where.gguf_file is None:
        kind = getattr(model, "quantization_method", "an unknown way")
        mend = "dequantise it (in Transformers: model.dequantize, then save_pretrained)"
        raise UsageError(f"model {name!r}: its weights are quantised ({kind}); {mend}")
    return model, tokenizer
