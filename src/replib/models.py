"""Load a model by name as a TransformerLens bridge, and say what was loaded.

Names: those of `replib.sources` (the two embedded models, `tiny` with seeded random weights, the
planted ones with weights set by hand), any Hugging Face id with a revision, any local folder.
Weights are read from safetensors or GGUF files only, and code that comes with a checkpoint is never
run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import tqdm
import transformers
from filelock import FileLock
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.sources._bridge_builder import detect_tokenizer_bos_eos
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.sources import (
    KNOWN,
    MADE_IN_MEMORY,
    SOURCES,
    EmbeddedSource,
    find_damage,
    fingerprint,
    folder_hash,
    sha256_file,
    unpacked_folder,
    versions,
    write_manifest,
)
from replib.storage import replacing

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,  # a reference for the rounding of the others
}
HUB_SECONDS = 8.0  # longest wait for the hub's first answer
HUB_FILES = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


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


def _check_revision(name: str, revision: str | None) -> None:
    if revision is not None and (name in KNOWN or Path(name).expanduser().is_dir()):
        raise UsageError(f"revision {revision!r}: only a Hugging Face id has one, not {name!r}")


def find_device(device: str) -> torch.device:
    """ "auto" picks cuda, then mps, then cpu; any other device must be there.

    Raises UsageError for a device that torch does not know or this machine does not have.
    """
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if device == "auto":
        return torch.device(here[0])
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is not None and found.type in here:
        count = torch.cuda.device_count() if found.type == "cuda" else 1
        if (found.index or 0) < count:
            return found
    raise UsageError(
        f"device {device!r} is not available here; choose one of: auto, {', '.join(here)}"
    )


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the processor multiplies it, else float32.

    Raises UsageError for another name than "auto" and those of `DTYPES`, and for float64 on mps,
    which has none.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(
                f"dtype {dtype!r} is not known; choose one of: auto, {', '.join(DTYPES)}"
            )
        if dtype == "float64" and device.type == "mps":
            raise UsageError("dtype 'float64' does not exist on mps; give --device cpu")
        return DTYPES[dtype]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _set_threads() -> None:
    """All processors, unless REPLIB_THREADS or OMP_NUM_THREADS says otherwise."""
    wanted = os.environ.get("REPLIB_THREADS")
    if wanted is not None:
        if not re.fullmatch("0*[1-9][0-9]{0,3}", wanted):
            raise UsageError(f"REPLIB_THREADS={wanted!r} is not a whole number from 1 to 9999")
        torch.set_num_threads(int(wanted))
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)


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


def _from_hub(
    name: str, revision: str | None, before_download: Callable[[int], None] | None
) -> _Where:
    """A hub model's snapshot at one commit: safetensors, configuration and tokenizer only.

    Without a network the copy in the Hugging Face cache is used, if there is one.
    """
    known = f"known models: {', '.join(KNOWN)}; or a local folder, or a Hugging Face id"
    at = "" if revision is None else f" at revision {revision!r}"
    try:
        info = _within(
            HUB_SECONDS,
            lambda: huggingface_hub.HfApi().model_info(name, revision=revision, timeout=5),
        )
    except HFValidationError:
        raise UsageError(
            f"model {name!r} is not known, and there is no such folder; {known}"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"model {name!r} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UsageError(f"model {name!r} is not known, and not on the hub; {known}") from None
    except Exception as error:
        try:
            folder = _snapshot(name, revision, local_files_only=True)
        except Exception:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise UsageError(
                f"model {name!r} is not known, and the hub could not be reached to look for it"
                f"{at} ({reason}); {known}"
            ) from None
        return _hub_snapshot(name, folder)
    if not any(fnmatch(s.rfilename, HUB_FILES[0]) for s in info.siblings or []):
        raise UsageError(f"model {name!r}{at} has no safetensors weights on the hub")
    if before_download is not None and getattr(info, "safetensors", None) is not None:
        before_download(info.safetensors.total)
    try:
        folder = _snapshot(name, revision, local_files_only=False)
    except GatedRepoError:
        raise UsageError(
            f"model {name!r} is gated: accept its terms on the hub and log in (hf auth login)"
        ) from None
    except Exception as error:
        raise UsageError(f"model {name!r}: download failed: {_first_line(error)}") from error
    return _hub_snapshot(name, folder)


def _snapshot(name: str, revision: str | None, *, local_files_only: bool) -> Path:
    """The folder of the hub model's files, downloaded where that is allowed and needed."""
    return Path(
        huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=["*/*"],
            tqdm_class=_TerminalBar,
            local_files_only=local_files_only,
        )
    )


def _hub_snapshot(name: str, folder: Path) -> _Where:
    return _Where(
        source=f"Hugging Face hub, {name}",
        note="",
        folder=folder,
        gguf_file=_gguf_file(folder),
        revision=folder.name,  # a snapshot folder is named by its commit
    )


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result or exception; TimeoutError when there is none in time.

    Name servers and dropped packets have time limits of their own, longer than anyone would wait.
    """
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((call(), None))
        except Exception as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    result, error = done[0]
    if error is not None:
        raise error
    return result


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ---- the embedded models' cache ----------------------------------------------------------------


def _dequantised(name: str) -> Path:
    """The folder with the model as float32 safetensors, made on first use.

    Safe against a crash (written aside, then renamed) and against a second process (a lock).
    """
    source = SOURCES[name]
    folder = unpacked_folder(name)
    if not find_damage(folder, source):
        return folder
    parts = source.paths()
    if parts is None:
        raise UsageError(f"model {name!r} is not installed; install it with: {source.install}")
    try:
        return _unpack(name, source, parts, folder)
    except OSError as error:
        raise UsageError(
            f"model {name!r} cannot be unpacked into {folder}: {error.strerror or error}; "
            "REPLIB_CACHE names another folder"
        ) from None


def _unpack(name: str, source: EmbeddedSource, parts: Sequence[Path], folder: Path) -> Path:
    """Make the folder of `_dequantised`, or wait for another process that does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        damage = find_damage(folder, source)
        if not damage:  # another process made it while this one waited
            return folder
        for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        if folder.exists():
            log.warning("%s: %s; making it again", folder, damage)
        log.warning("dequantising %s once, for about half a minute, into %s", name, folder)
        with replacing(folder) as temp:
            _check_and_dequantise(name, source, parts, temp)
    return folder


def _check_and_dequantise(
    name: str, source: EmbeddedSource, parts: Sequence[Path], folder: Path
) -> None:
    """Check the GGUF file's sha256, write its dequantised form and a manifest into `folder`."""
    gguf = parts[0] if len(parts) == 1 else folder / "joined.gguf"
    if len(parts) > 1:
        with gguf.open("wb") as joined:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, joined)
    found = sha256_file(gguf)
    if found != source.sha256:
        raise UsageError(
            f"model {name!r}: the GGUF file's sha256 is {found}, not {source.sha256}; "
            f"install it afresh with: {source.install} --force-reinstall"
        )
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        # Both would make the saved folder claim that its weights are still quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if len(parts) > 1:
        gguf.unlink()
    files = {
        path.name: {**fingerprint(path), "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
    }
    write_manifest(folder, {"source": source.sha256, "versions": versions(), "files": files})


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


class _TerminalBar(tqdm.tqdm):
    """A progress bar on a terminal, nothing in a notebook or a log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": None}))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without advice, and without bars unless on a terminal; errors still raise."""
    voice = transformers.utils.logging
    bars, level, bar = voice.is_progress_bar_enabled(), voice.get_verbosity(), gguf_reader.tqdm
    voice.disable_progress_bar()
    voice.set_verbosity_error()
    gguf_reader.tqdm = _TerminalBar
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        voice.set_verbosity(level)
        if bars:
            voice.enable_progress_bar()


# ---- random models -----------------------------------------------------------------------------

ARCHITECTURES = ("gpt2", "neox", "llama", "gemma3")
_TINY_NOTE = "Random weights: nothing can be found in it."


def tiny_model(arch: str, seed: int = 0) -> TransformerBridge:
    """A random model of 4 layers × 4 heads, d_model 32, over the vocabulary of `word_tokenizer`.

    `arch` is gpt2 or neox (every head its own key and value; neox adds attention and MLP in
    parallel), llama or gemma3 (two query heads to a key/value head; gemma3 with norms after
    attention and MLP, d_head 16, and a sliding window of 8 in layers 0 and 2). Weights, biases and
    norms are all drawn from `seed` and large enough that every head matters.

    Raises UsageError for another `arch`.
    """
    model, tokenizer = _tiny_parts(arch, seed)
    source = f"random weights, {arch} architecture, seed {seed}"
    return _bridge(model, tokenizer, f"tiny-{arch}", _Where(source=source, note=_TINY_NOTE))


def _tiny_parts(arch: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from replib.prompts import word_tokenizer

    tokenizer = word_tokenizer()
    rope = {
        "max_position_embeddings": 512,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    ids = {"vocab_size": len(tokenizer)} | {
        f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")
    }
    if arch == "gpt2":
        config = transformers.GPT2Config(n_positions=512, n_embd=32, n_layer=4, n_head=4, **ids)
    elif arch == "neox":
        config = transformers.GPTNeoXConfig(**rope, **ids)
    elif arch == "llama":
        config = transformers.LlamaConfig(
            num_key_value_heads=2, tie_word_embeddings=True, **rope, **ids
        )
    elif arch == "gemma3":
        config = transformers.Gemma3TextConfig(
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **rope,
            **ids,
        )
    else:
        raise UsageError(f"arch {arch!r} is not known; choose one of: {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):  # the library's own initialisation leaves no trace
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            # Matrices become the noise; norms and biases keep their start (1 or 0) and gain it.
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model, tokenizer
