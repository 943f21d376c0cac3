"""One job on one GPU: a run takes a free one for itself and waits while there is none.

The lock is a file a GPU, held as long as the process lives, whoever killed it. It binds runs of
this library on this machine, whether a workflow started them or a person.
"""

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from replib.errors import UsageError

_POLL_S = 0.2


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    A scheduler that gave us some has set that variable; else all that `nvidia-smi` lists.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return found.stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


@contextlib.contextmanager
def own_gpu(device: str, waiting: Callable[[], None] = lambda: None) -> Iterator[str | None]:
    """Hold a GPU while this is open; its name for CUDA_VISIBLE_DEVICES, None without cuda.

    `waiting` is called once if all are taken. Raises UsageError when there is none at all.
    """
    if not device.startswith("cuda"):
        yield None
        return
    gpus = visible_gpus()
    if not gpus:
        raise UsageError("device cuda: no GPU is visible here (nvidia-smi lists none)")
    folder = Path(tempfile.gettempdir()) / f"replib-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for attempt in itertools.count():
        for gpu in gpus:
            try:
                held = FileLock(folder / gpu.replace(os.sep, "-"), timeout=0, mode=0o600).acquire()
            except Timeout:
                continue
            with held:
                yield gpu
            return
        if attempt == 0:
            waiting()
        time.sleep(_POLL_S)
