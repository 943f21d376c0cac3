"""A sweep through a real Slurm, broken off in the middle; called by .ci/slurm, which starts one.

The twelve jobs of benchmarks/sweep.py. While two of them run, the process of one is killed, then
the one that plans; the same command again must do the rest and nothing twice. At last the records
are compared with those of the same sweep run here without Slurm.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from trust import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from sweep import N_JOBS, records, sweep_command

NAME = "slurm-test"
SLURM = ["--profile", "slurm", "--jobs", "3", "--", "--slurm-status-command", "squeue"]
SLURM += ["--seconds-between-status-checks", "3", "--slurm-init-seconds-before-status-checks", "3"]
# What two runs of one computation may differ in.
OF_THE_RUN = ("started", "wall_time_s", "peak_memory_mb", "seal")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        through, here = (sweep_command(Path(folder), name) for name in (NAME, "local-test"))
        lost = broken_off([*through, *SLURM])
        waiting = dry_run(through)
        done = N_JOBS - len(waiting)
        assert 0 < done < N_JOBS, f"{done} jobs were done when it was broken off"
        assert lost in waiting, f"the job that was killed, {lost}, counts as done"
        wait_until(lambda: not queue(), 600, "jobs of the killed sweep to leave the queue")
        before = {name: path.stat().st_mtime_ns for name, path in records(NAME).items()}
        run([*through, *SLURM], "the rest through Slurm")
        assert not dry_run(through)
        after = {name: path.stat().st_mtime_ns for name, path in records(NAME).items()}
        late = [name for name in before if after[name] != before[name] and name not in waiting]
        assert not late, f"done jobs ran again: {late}"
        run([*here, "--jobs", "2"], "the same sweep without Slurm")
    a, b = read(NAME), read("local-test")
    assert len(a) == N_JOBS and a.keys() == b.keys(), f"{sorted(a)} and {sorted(b)}"
    for name, record in a.items():
        assert record == b[name], (
            f"{name}: differs in {[k for k in record if record[k] != b[name][k]]}"
        )
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


def queue() -> str:
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout


def read(sweep: str) -> dict[str, dict]:
    """The records by name, but for what belongs to the run."""
    found = {name: json.loads(path.read_text()) for name, path in records(sweep).items()}
    return {
        name: {key: value for key, value in record.items() if key not in OF_THE_RUN}
        for name, record in found.items()
    }


def wait_until(condition: Callable, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"slurm: waited {seconds:.0f} s for {what}\n{queue()}")
        time.sleep(0.2)


def running_runs() -> dict[int, str]:
    """Process ids of `replib run` in jobs of Slurm -> the jobs' names."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        out = next((word for word in words if word.startswith(f"build/sweeps/{NAME}/")), None)
        if out and "run" in words and words[1].endswith("replib"):
            found[process.pid] = f"{Path(out).name}/{words[words.index('run') + 1]}/tiny"
    return found


def broken_off(command: Sequence[str]) -> str:
    """Start the sweep, kill one job and then the planning process; the name of that job."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    stamps = ROOT / "build/sweeps" / NAME / "stamps"
    wait_until(lambda: len(list(stamps.glob("*/*/*.ok"))) >= 2, 300, "the first two jobs")
    wait_until(running_runs, 120, "a job to kill")
    pid, lost = next(iter(running_runs().items()))
    os.kill(pid, signal.SIGKILL)
    print(f"slurm: killed {lost}, then the process that plans", flush=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return lost


if __name__ == "__main__":
    main()
