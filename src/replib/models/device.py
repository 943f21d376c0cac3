"""Where, in which number type and on how many threads a model computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replib.errors import UsageError

# float64 is a reference for the rounding of the others.
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def find_device(device: str) -> torch.device:
    """ "auto" picks cuda, then mps, then cpu; UsageError for another that is not here."""
    known = {"cuda": torch.cuda, "mps": torch.backends.mps, "cpu": torch.cpu}
    here = [kind for kind, module in known.items() if module.is_available()]
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
    choices = f"choose one of: auto, {', '.join(here)}"
    raise UsageError(f"device {device!r} is not available here; {choices}")


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the processor multiplies it, else float32.

    UsageError for a name that is not of `DTYPES`, and for float64 on mps, which has none.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            choices = f"choose one of: auto, {', '.join(DTYPES)}"
            raise UsageError(f"dtype {dtype!r} is not known; {choices}")
        if dtype == "float64" and device.type == "mps":
            raise UsageError("dtype 'float64' does not exist on mps; give --device cpu")
        return DTYPES[dtype]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # not what oneDNN accepts: without these it converts, three times slower than float32
        here = (torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported())
        fast = device.type == "cpu" and any(here)
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def one_thread() -> Iterator[None]:
    """While it is open, torch computes on one thread: small networks gain nothing from more, and
    sums come out alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
