"""Numerics of a run: on how many threads and with which instructions it computes.

Both decide in which order a sum is added up, and so its last digits. What hangs on them shows when
a run is made again with `other` numerics on the same machine.
"""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bookkit.records import Numerics
from replib.errors import find_control
from replib.models.threads import n_threads

CPUINFO = Path("/proc/cpuinfo")
# torch's own loops, oneDNN (products in bfloat16) and MKL (those in float32) each have a limit.
LIMITS = {
    "AVX2": ("avx2", "AVX2", "AVX2"),
    "SSE4": ("default", "SSE41", "SSE4_2"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def usual() -> Numerics:
    """Those of a run that is started here and now, with what the user's variables say."""
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    limited = ", ".join(given)
    instructions = limited if limited and not find_control(limited) else "all"
    return Numerics(threads=n_threads(), instructions=instructions, processor=_processor())


def other(first: Numerics) -> Numerics:
    """Other ones for a second run here: more threads or fewer, and older instructions."""
    older = "all"
    if platform.machine() in ("x86_64", "AMD64"):
        older = "AVX2" if re.search(r"\bavx512f\b", _about_processor()) else "SSE4"
    threads = 2 if first.threads == 1 else 1
    return Numerics(threads=threads, instructions=older, processor=_processor())


def variables(numerics: Numerics) -> dict[str, str]:
    """What the environment of a run's kernel has to say for these numerics."""
    limits = LIMITS.get(numerics.instructions)
    limited = dict(zip(VARIABLES, limits, strict=True)) if limits else {}
    return {"REPLIB_THREADS": str(numerics.threads)} | limited


def in_words(numerics: Mapping[str, Any]) -> str:
    """`1 thread, all instructions`, of a record's numerics."""
    threads = "1 thread" if numerics["threads"] == 1 else f"{numerics['threads']} threads"
    return f"{threads}, {numerics['instructions']} instructions"


def _processor() -> str:
    found = re.search(r"(?m)^model name\s*:\s*(\S.*)$", _about_processor())
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def _about_processor() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
