"""A run's process, watched: its progress, its memory, its end."""

import contextlib
import json
import math
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bookkit.run.environment import kernel_environment

SAMPLE_S = 0.5  # to look through all processes takes a twentieth of a second


@dataclass
class Watched:
    """What is known of a run while it goes on, from the messages of its process."""

    cell: dict[str, Any] | None = None  # the cell that runs: index, code, id, line
    end: dict[str, Any] | None = None  # the last message
    peak_bytes: int = 0
    processes: set[psutil.Process] = field(default_factory=set)
    timed_out: bool = False
    exit_code: int | None = None


def watch_process(
    job: Mapping[str, Any],
    limit_s: float,
    log: Any,
    progress: Callable[[int, int], None],
    extra: Mapping[str, str],
) -> Watched:
    """Run the job in a process of its own; kill its whole family when the time is up, when we are
    interrupted, and whatever is left of it at the end."""
    watched = Watched()
    deadline = time.monotonic() + limit_s if limit_s > 0 else math.inf
    # Sockets of the kernel stand here; their names must be short.
    with tempfile.TemporaryDirectory(prefix="replib-") as runtime:
        process = subprocess.Popen(
            [sys.executable, "-m", "bookkit.run.child", "run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=kernel_environment(Path(runtime)) | extra,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()  # stays open: its end tells the process that we are gone
            for message in _messages(process, watched, deadline):
                if "code" in message:
                    watched.cell = message
                if watched.cell is not None:
                    progress(watched.cell["code"], watched.cell["of"])
                if "end" in message:
                    watched.end = message
                    watched.peak_bytes = max(watched.peak_bytes, message.get("peak_bytes", 0))
            if not watched.timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    watched.exit_code = process.wait(timeout=30)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            _sample(process, watched)
            for member in watched.processes:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.kill()
            process.wait()
            psutil.wait_procs(watched.processes, timeout=5)
    return watched


def _messages(
    process: subprocess.Popen, watched: Watched, deadline: float
) -> Iterator[dict[str, Any]]:
    """The process's messages until it closes its output or the time is up, with empty ones while it
    is silent; memory on the way."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        with process.stdout as stream:
            for line in stream:
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    while (left := deadline - time.monotonic()) > 0:
        line = b"{}\n"
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=min(SAMPLE_S, left))
        _sample(process, watched)
        if not line.endswith(b"\n"):  # its end, maybe in the middle of a message
            return
        yield json.loads(line)
    watched.timed_out = True


def _sample(process: subprocess.Popen, watched: Watched) -> None:
    """Add up the memory of the process and its descendants; remember who they are."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
                watched.processes.add(member)
    watched.peak_bytes = max(watched.peak_bytes, total)
