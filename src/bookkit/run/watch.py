"""A run's process, watched: its progress, its memory, its end."""

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from bookkit.run.environment import environment

SAMPLE_S = 0.1


@dataclass
class Watched:
    """What is known of a run while it goes on, from the messages of its process."""

    cell: dict[str, Any] | None = None  # the cell that runs: index, code, id, line
    end: dict[str, Any] | None = None  # the last message
    peak_bytes: int = 0
    processes: dict[int, psutil.Process] = field(default_factory=dict)
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
            env=environment(runtime) | extra,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
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
                    watched.exit_code = process.wait(timeout=max(0.0, min(30.0, _left(deadline))))
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            _sample(process, watched)
            for member in watched.processes.values():
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.kill()
            process.wait()
            psutil.wait_procs(list(watched.processes.values()), timeout=5)
            process.stdout.close()
    return watched


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _messages(
    process: subprocess.Popen, watched: Watched, deadline: float
) -> Iterator[dict[str, Any]]:
    """The process's messages until it closes its output or the time is up, with empty ones while it
    is silent; memory on the way."""
    assert process.stdout is not None
    stream = process.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if _left(deadline) <= 0:
                watched.timed_out = True
                return
            ready = selector.select(max(0.0, min(SAMPLE_S, _left(deadline))))
            _sample(process, watched)
            if not ready:
                yield {}
                continue
            piece = os.read(stream, 65536)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines)
            if not piece:
                return


def _sample(process: subprocess.Popen, watched: Watched) -> None:
    """Add up the memory of the process and its descendants; remember who they are."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
                watched.processes.setdefault(member.pid, member)
    watched.peak_bytes = max(watched.peak_bytes, total)
