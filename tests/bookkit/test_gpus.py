"""One job on one GPU; the GPUs here are names only."""

import itertools
import subprocess
import sys

import pytest

from bookkit.run.gpus import own_gpu, visible_gpus
from replib.errors import UsageError

HOLD = """
import sys, time
from bookkit.run.gpus import own_gpu
with own_gpu("cuda") as gpu:
    print(gpu, time.monotonic(), flush=True)
    time.sleep(float(sys.argv[1]))
    print(gpu, time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def two(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, GPU-b")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def hold(seconds):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_six_jobs_share_two_gpus_and_never_one_at_once():
    jobs = [hold(0.4) for _ in range(6)]
    held = {}
    for job in jobs:
        lines = job.communicate(timeout=60)[0].split()
        held.setdefault(lines[0], []).append((float(lines[1]), float(lines[3])))
    assert set(held) == {"0", "GPU-b"}
    for spans in held.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_who_waits_is_told_once_and_every_end_of_a_job_frees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    job, told = hold(60), []
    assert job.stdout.readline().startswith("0 ")

    def waiting():
        told.append(1)
        job.kill()

    with pytest.raises(ZeroDivisionError), own_gpu("cuda", waiting) as gpu:
        assert gpu == "0" and told == [1]
        1 / 0  # noqa: B018
    job.communicate()
    with own_gpu("cuda", lambda: pytest.fail("it is still held")) as gpu:
        assert gpu == "0"


def test_without_cuda_nothing_is_held_and_without_a_gpu_it_is_said(monkeypatch):
    with own_gpu("cpu") as gpu:
        assert gpu is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    with pytest.raises(UsageError, match="no GPU is visible"), own_gpu("cuda"):
        pass
