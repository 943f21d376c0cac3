"""Twelve jobs of a sweep on one worker and on two, one thread each, in one run.

Rewrites benchmarks/sweep.json, for the book's page on performance. Takes about five minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SWEEP = {
    "papers": ["factual-recall", "successor-heads"],
    "models": ["tiny"],
    "seeds": [0, 1, 2, 3, 4, 5],
    "profile": "smoke",
    "threads": 1,
    "memory_gb": 2,
}
N_JOBS = 12


def sweep_command(folder: Path, name: str) -> list[str]:
    """The command for these jobs from nothing, under this name; its file stands in the folder."""
    subprocess.run(["rm", "-rf", f"build/sweeps/{name}"], cwd=ROOT, check=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name} | SWEEP))
    return [sys.executable, "-m", "bookkit.cli", "sweep", str(path)]


def records(name: str) -> dict[str, Path]:
    """The records of the sweep, by variant, paper and model."""
    paths = (ROOT / "build/sweeps" / name).glob("seed-*/*/*/record.json")
    return {"/".join(path.parent.parts[-3:]): path for path in paths}


def seconds(folder: Path, workers: int) -> float:
    """Wall time of the whole command."""
    command = sweep_command(folder, f"bench-{workers}")
    began = time.perf_counter()
    subprocess.run([*command, "--jobs", str(workers)], cwd=ROOT, check=True, capture_output=True)
    passed = time.perf_counter() - began
    assert len(records(f"bench-{workers}")) == N_JOBS
    print(f"{workers} at once: {passed:.0f} s", flush=True)
    return passed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = (seconds(Path(folder), workers) for workers in (1, 2))
    report = {"date": date.today().isoformat(), "jobs": N_JOBS, "processors": os.cpu_count()}
    report |= {"one_s": round(one, 1), "two_s": round(two, 1), "ratio": round(one / two, 3)}
    (ROOT / "benchmarks/sweep.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"two workers are {report['ratio']:.2f} times as fast as one")


if __name__ == "__main__":
    main()
