"""How large a model is, what a run needs and how long it may take, before anything is loaded.

The estimate scales a certified record of the same chapter, made on a small model: memory besides
the weights with the model's width, time with the parameters that every token passes through and
with the speed of this machine, which is measured for a moment. Wrong by a factor of two at times.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkit.records import FOLDER, read_record
from replib.errors import UsageError
from replib.files import read_yaml

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_BASE_BYTES = 0.9e9  # Python, torch and the other libraries
_START_S = 10.0  # imports and a kernel
_CALIBRATION_S = 0.3
# Batches are as they are, halved while they do not fit, doubled where a GPU has room.
SCALES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True)
class Size:
    """A model's size. `n_embedding` parameters are only looked up; the others compute."""

    n_params: int
    n_embedding: int
    d_model: int

    @property
    def n_active(self) -> int:
        return self.n_params - self.n_embedding


_FILE = Path(__file__).with_name("published.yaml")
PUBLISHED: Mapping[str, Size] = {  # models of papers, which need not be at hand
    name: Size(n_params, words * width, width)
    for name, (n_params, words, width) in read_yaml(_FILE.read_text(), str(_FILE)).items()
}


@dataclass(frozen=True)
class Reference:
    """A certified run: what a chapter needed on a model of this size."""

    size: Size
    working_bytes: float  # beside libraries and weights
    seconds: float
    speed: float  # FLOP/s, as `measure_speed` found then


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need. None: there is no certified record to start from."""

    size: Size
    dtype: str
    available_bytes: float
    needed_bytes: float
    batch_scale: float = 1.0
    seconds: float | None = None

    def line(self) -> str:
        """For the terminal: size, memory, time."""
        needed, free = gigabytes(self.needed_bytes), gigabytes(self.available_bytes)
        text = f"{_count(self.size.n_params)} parameters in {self.dtype}, "
        text += f"needs about {needed} of memory, {free} are free"
        if self.batch_scale != 1:
            text += f", batches × {self.batch_scale:g}"
        if self.seconds is not None:
            text += f", takes about {rough_duration(self.seconds)} (to a factor of two)"
        return text


# --- a model's size -------------------------------------------------------------------------------


def folder_size(folder: Path) -> Size:
    """The size of a saved model, from the headers of its files and its configuration; UsageError
    when they cannot be read."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    tensors = sorted(folder.glob("*.safetensors"))
    try:
        own = {"local_files_only": True, "trust_remote_code": False}
        if tensors:
            n_params = sum(map(_in_safetensors, tensors))
        else:
            path = sorted(folder.glob("*.gguf"))[0]
            own["gguf_file"] = path.name
            n_params = sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
        config = AutoConfig.from_pretrained(folder, **own).get_text_config()
        numbers = (n_params, config.vocab_size, config.hidden_size)
        if not all(type(number) is int and 0 < number < 2**50 for number in numbers):
            raise ValueError(f"parameters, vocabulary and width are {numbers}")
        return Size(n_params, config.vocab_size * config.hidden_size, config.hidden_size)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"model {folder}: its size cannot be read: {text}") from None


# The families that every chapter is tried on, in tests/long/matrix.py.
TRIED = ("GPT2", "GPTNeoX", "OPT", "Llama", "Mistral", "Qwen3", "Phi")
TRIED += ("Gemma2", "Gemma3", "Mamba", "Mamba2")


def architecture(folder: Path) -> str | None:
    """The architecture that a folder's configuration names, if no chapter has been tried on it."""
    try:
        name = str(json.loads((folder / "config.json").read_text())["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    family = re.sub(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$", "", name)
    return None if family in TRIED else name


def _in_safetensors(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


# --- this machine ---------------------------------------------------------------------------------


def available_bytes(device: str) -> float:
    """Memory that a new process may take: of the GPU, or of the machine and its control group."""
    import psutil

    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    free = float(psutil.virtual_memory().available)
    groups = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            free = min(free, float(left))
    return free


def measure_speed(d_model: int, dtype: str, device: str, threads: int) -> float:
    """FLOP/s of the matrix product that fills most of a forward pass, measured for a moment."""
    import torch

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    x = torch.ones(256, d_model, dtype=kind, device=device)
    w = torch.ones(d_model, 4 * d_model, dtype=kind, device=device)

    def finish() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    x @ w
    finish()
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < _CALIBRATION_S or count == 0:
        x @ w
        finish()
        count += 1
    return count * 2 * 256 * d_model * 4 * d_model / passed


# --- the estimate ---------------------------------------------------------------------------------


def reference(record: Mapping[str, Any]) -> Reference | None:
    """What a certified record tells about other models; None if it was made without measuring."""
    then = record["calibration"]
    if then is None or record["model"].get("dtype") not in BYTES:
        return None
    size = Size(then["n_params"], then["n_embedding"], then["d_model"])
    weights = 2 * size.n_params * BYTES[record["model"]["dtype"]]
    working = record["peak_memory_mb"] * 1e6 - _BASE_BYTES - weights
    seconds = max(record["wall_time_s"] - _START_S, 1.0)
    return Reference(size, max(working, 0.2e9), seconds, then["speed"])


def certified_reference(root: Path, paper: str) -> Reference | None:
    """The first certified run of a paper's laptop profile that was measured."""
    for path in sorted((root / FOLDER / paper).glob("*/record.json")):
        record = read_record(path)
        if record["profile"] == "laptop" and (found := reference(record)):
            return found
    return None


def needed(
    size: Size, dtype: str, on_gpu: bool, known: Reference | None, scale: float = 1.0
) -> float:
    """Bytes that a run needs, with batches `scale` times as large as usual."""
    # Loading on the CPU holds the file's tensors and the model's at once, for a moment.
    weights = size.n_params * BYTES[dtype] * (1 if on_gpu else 2)
    working = known.working_bytes * size.d_model / known.size.d_model if known else 0.5e9
    return (0.5e9 if on_gpu else _BASE_BYTES) + weights + working * scale


def expected_seconds(size: Size, known: Reference, work: float, speed: float) -> float:
    """How long a run takes at this speed (FLOP/s)."""
    ratio = size.n_active / max(known.size.n_active, 1)
    return _START_S + known.seconds * work * ratio * known.speed / speed


def estimate(
    size: Size,
    dtype: str,
    device: str,
    available: float,
    known: Reference | None,
    work: float = 1.0,
    speed: float | None = None,
) -> Estimate:
    """Memory and time of a run; `work` is its profile's size, the laptop profile's being 1.
    UsageError when it cannot fit even in the smallest batches."""
    on_gpu = device.startswith("cuda")
    needs = {scale: needed(size, dtype, on_gpu, known, scale) for scale in SCALES}
    roomy = on_gpu and known is not None
    fitting = [s for s in SCALES if (s <= 1 or roomy) and needs[s] <= available]
    if not fitting:
        least = needs[SCALES[-1]]
        weights = size.n_params * BYTES[dtype] * (1 if on_gpu else 2)
        fits = size.n_params * max(available - least + weights, 0.0) / weights
        half = f", {_count(fits * BYTES[dtype] / 2)} in bfloat16 (--dtype bfloat16)"
        raise UsageError(
            f"the model has {_count(size.n_params)} parameters and needs {gigabytes(least)} of "
            f"memory in {dtype} on {device}, where {gigabytes(available)} are free; what fits: "
            f"about {_count(fits)} parameters in {dtype}{half if BYTES[dtype] > 2 else ''}"
        )
    seconds = expected_seconds(size, known, work, speed) if known and speed else None
    return Estimate(size, dtype, available, needs[fitting[0]], fitting[0], seconds)


def rough_duration(seconds: int | float) -> str:
    """To one or two digits: `40 s`, `3 min`, `2 h`, `5 days`."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{max(1, round(seconds / length))} {unit}"
    return f"{round(seconds / 86400)} days"


def _count(n: int | float) -> str:
    for name, size in (("billion", 1e9), ("million", 1e6)):
        if n >= size:
            return f"{n / size:.3g} {name}"
    return f"{n:,.0f}"


def gigabytes(n: int | float) -> str:
    return f"{n / 1e9:.1f} GB"
