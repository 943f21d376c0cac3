"""A sweep through a real Slurm, broken off in the middle; called by .ci/slurm, which starts one.

Twelve jobs. While two of them run, the process of one is killed, then the one that plans; the same
command again must do the rest and nothing twice. At last the records are compared with those of
the same sweep run here without Slurm.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from trust import ROOT

REPLIB = Path(sys.executable).with_name("replib")
SWEEP = {
    "papers": ["factual-recall", "successor-heads"],
    "models": ["tiny"],
    "seeds": [0, 1, 2, 3, 4, 5],
    "profile": "smoke",
    "memory_gb": 2,
}
N_JOBS = 12
SLURM = ["--profile", "slurm", "--jobs", "3", "--", "--slurm-status-command", "squeue"]
SLURM += ["--seconds-between-status-checks", "3", "--slurm-init-seconds-before-status-checks", "3"]
# What two runs of one computation may differ in.
OF_THE_RUN = ("started", "wall_time_s", "peak_memory_mb", "seal")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        through, here = sweep_file(folder, "slurm-test"), sweep_file(folder, "local-test")
        subprocess.run(
            ["rm", "-rf", "build/sweeps/slurm-test", "build/sweeps/local-test"], cwd=ROOT
        )
        lost = broken_off(through)
        waiting = dry_run(through)
        done = N_JOBS - len(waiting)
        assert 0 < done < N_JOBS, f"{done} jobs were done when it was broken off"
        assert lost in waiting, f"the job that was killed, {lost}, counts as done"
        wait_until(lambda: not queue(), 600, "jobs of the killed sweep to leave the queue")
        before = {path: path.stat().st_mtime_ns for path in records("slurm-test").values()}
        run([*replib(through), *SLURM], "the rest through Slurm")
        assert not dry_run(through)
        again = [p for p, made in before.items() if p.stat().st_mtime_ns != made]
        late = [p for p in again if stamp_name(p) not in waiting]
        assert not late, f"done jobs ran again: {late}"
        run([*replib(here), "--jobs", "2"], "the same sweep without Slurm")
        compare(records("slurm-test"), records("local-test"))
    print(f"slurm: {N_JOBS} jobs, {done} before it was broken off; all records agree", flush=True)


def sweep_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name} | SWEEP))
    return path


def replib(path: Path) -> list[str]:
    return [str(REPLIB), "sweep", str(path)]


def run(command: list[str], what: str) -> None:
    began = time.monotonic()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if process.returncode != 0:
        sys.exit(f"slurm: {what} ended with {process.returncode}\n{process.stdout}{process.stderr}")
    print(f"slurm: {what}: {time.monotonic() - began:.0f} s", flush=True)


def dry_run(path: Path) -> list[str]:
    """The names of the jobs that are not done."""
    command = [*replib(path), "--dry-run"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^(\S+): ", out, re.MULTILINE)


def queue() -> list[str]:
    listed = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True)
    return listed.stdout.split("\n")[:-1]


def records(sweep: str) -> dict[str, Path]:
    root = ROOT / "build/sweeps" / sweep
    return {stamp_name(path): path for path in root.glob("seed-*/*/*/record.json")}


def stamp_name(record: Path) -> str:
    return "/".join(record.parent.parts[-3:])


def wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"slurm: waited {seconds:.0f} s for {what}\n" + "\n".join(queue()))
        time.sleep(0.2)


def running_runs() -> dict[int, str]:
    """Process ids of `replib run` in jobs of Slurm -> the jobs' names."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        texts = [word.decode(errors="replace") for word in words]
        out = next((t for t in texts if t.startswith("build/sweeps/slurm-test/")), None)
        if out and "run" in texts and texts[1].endswith("replib"):
            paper = texts[texts.index("run") + 1]
            found[int(entry.name)] = f"{Path(out).name}/{paper}/tiny"
    return found


def broken_off(path: Path) -> str:
    """Start the sweep, kill one job and then the planning process; the name of that job."""
    process = subprocess.Popen(
        [*replib(path), *SLURM],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stamps = ROOT / "build/sweeps/slurm-test/stamps"
    wait_until(lambda: len(list(stamps.glob("*/*/*.ok"))) >= 2, 300, "the first two jobs")
    wait_until(lambda: bool(running_runs()), 120, "a job to kill")
    pid, lost = next(iter(running_runs().items()))
    os.kill(pid, signal.SIGKILL)
    print(f"slurm: killed {lost}, then the process that plans", flush=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return lost


def compare(a: dict[str, Path], b: dict[str, Path]) -> None:
    assert len(a) == N_JOBS and a.keys() == b.keys(), f"{sorted(a)} and {sorted(b)}"
    for name in a:
        one, two = (
            {k: v for k, v in json.loads(paths[name].read_text()).items() if k not in OF_THE_RUN}
            for paths in (a, b)
        )
        assert one == two, f"{name}: the records differ in {[k for k in one if one[k] != two[k]]}"


if __name__ == "__main__":
    main()
