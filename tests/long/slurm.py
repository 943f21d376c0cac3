"""A sweep through a real Slurm, broken off in the middle; called by .ci/slurm, which starts one.

The twelve jobs of benchmarks/sweep.py. While two of them run, the process of one is killed, then
the one that plans; the same command again must do the rest and nothing twice. At last the records
are compared with those of the same sweep run here without Slurm.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from determinism import IDENTICAL, difference
from trust import ROOT

from bookkit.records import read_record

sys.path.append(str(ROOT / "benchmarks"))
from sweep import N_JOBS, records, sweep_command

NAME = "slurm-test"
SLURM = ["--profile", "slurm", "--jobs", "3", "--", "--slurm-status-command", "squeue"]
SLURM += ["--seconds-between-status-checks", "3", "--slurm-init-seconds-before-status-checks", "3"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        through, here = (sweep_command(Path(folder), name) for name in (NAME, "local-test"))
        lost = broken_off([*through, *SLURM])
        waiting = dry_run(through)
        done = N_JOBS - len(waiting)
        assert 0 < done < N_JOBS, f"{done} jobs were done when it was broken off"
        assert lost in waiting, f"the job that was killed, {lost}, counts as done"
        wait_until(lambda: not queue(), 600, "jobs of the killed sweep to leave the queue")
        before = written()
        run([*through, *SLURM], "the rest through Slurm")
        assert not dry_run(through)
        again = {name for name, _ in before.items() - written().items()} - {*waiting}
        assert not again, f"done jobs ran again: {again}"
        run([*here, "--jobs", "2"], "the same sweep without Slurm")
    a, b = records(NAME), records("local-test")
    assert len(a) == N_JOBS and a.keys() == b.keys(), f"{sorted(a)} and {sorted(b)}"
    for name in a:
        _, apart = difference(read_record(a[name]), read_record(b[name]), IDENTICAL)
        assert not apart, f"{name}: differs in {sorted(apart)}"
    print(f"slurm: {N_JOBS} jobs, {done} before it was broken off; all records agree", flush=True)


def run(command: Sequence[str], what: str) -> str:
    """What it said."""
    began = time.monotonic()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if process.returncode != 0:
        sys.exit(f"slurm: {what} ended with {process.returncode}\n{process.stdout}{process.stderr}")
    print(f"slurm: {what}: {time.monotonic() - began:.0f} s", flush=True)
    return process.stdout


def dry_run(command: Sequence[str]) -> list[str]:
    """The names of the jobs that are not done."""
    return re.findall(r"^(\S+): ", run([*command, "--dry-run"], "a dry run"), re.MULTILINE)


def written() -> dict[str, int]:
    """When the records of the sweep were written, by name."""
    return {name: path.stat().st_mtime_ns for name, path in records(NAME).items()}


def queue() -> str:
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout


def wait_until(condition: Callable, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"slurm: waited {seconds:.0f} s for {what}\n{queue()}")
        time.sleep(0.2)
    return found


def running() -> list[tuple[psutil.Process, str]]:
    """Each `replib run` in a job of Slurm, and the job's name."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        out = next((word for word in words if word.startswith(f"build/sweeps/{NAME}/")), None)
        if out and "run" in words and words[1].endswith("replib"):
            found.append((process, f"{Path(out).name}/{words[words.index('run') + 1]}/tiny"))
    return found


def broken_off(command: Sequence[str]) -> str:
    """Start the sweep, kill one job and then the planning process; the name of that job."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    stamps = ROOT / "build/sweeps" / NAME / "stamps"
    wait_until(lambda: len(list(stamps.glob("*/*/*.ok"))) >= 2, 300, "the first two jobs")
    job, lost = wait_until(running, 120, "a job to kill")[0]
    job.kill()
    print(f"slurm: killed {lost}, then the process that plans", flush=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return lost


if __name__ == "__main__":
    main()
