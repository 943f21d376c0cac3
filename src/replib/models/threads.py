"""How many threads to compute on; without torch, for who starts runs."""

import os
import re

from replib.errors import UsageError


def n_threads() -> int:
    """REPLIB_THREADS, else OMP_NUM_THREADS, else every processor that we may use."""
    for name in ("REPLIB_THREADS", "OMP_NUM_THREADS"):
        if (text := os.environ.get(name)) is not None:
            if not re.fullmatch("0*[1-9][0-9]{0,3}", text):
                raise UsageError(f"{name}={text!r} is not a whole number from 1 to 9999")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
