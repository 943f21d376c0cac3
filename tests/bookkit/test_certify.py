"""`replib certify`: a notebook whose outcome hangs on threads and instructions, run twice."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bookkit.certify import SAME, is_second
from bookkit.cli import main
from bookkit.records import Numerics, read_record
from bookkit.run import numerics
from bookkit.run.environment import environment
from replib.files import write_whole

HERE = Path(__file__).parents[1]
MEASURE = """
import os

threads = int(os.environ["REPLIB_THREADS"])
limits = [name for name in os.environ if name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
share = 0.5 if threads == 1 else 0.99
claims.measure("1.1", share, interval=(share - 0.01, share + 0.01), n=n_prompts, spread=0.1)
claims.report("limits", len(limits))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The toy chapter, whose value is right on one thread and wrong on several."""
    shutil.copytree(HERE / "notebooks", tmp_path / "notebooks")
    path = tmp_path / "notebooks/toy/toy.ipynb"
    content = json.loads(path.read_text())
    (cell,) = [one for one in content["cells"] if 'claims.measure("1.1"' in "".join(one["source"])]
    cell["source"] = MEASURE
    write_whole(path, json.dumps(content).encode())
    monkeypatch.chdir(tmp_path)
    for name in numerics.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPLIB_THREADS", "1")
    return tmp_path


def test_one_command_runs_twice_and_says_what_rounding_decides(project, capsys, monkeypatch):
    before = dict(environment())
    assert main(["run", "toy", "--model", "tiny", "--certify"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("toy on tiny: 1 holds, 1 not_attempted; ")
    assert out[1].startswith("toy on tiny: 1 fails, 1 not_attempted; ")
    assert out[2] == f"certified: {project}/results/toy/tiny/record.json; unstable: 1.1"
    record = read_record(project / "results/toy/tiny/record.json")
    claim = record["claims"][0]
    assert claim["outcome"] == "unclear"
    assert re.fullmatch(
        r"unstable: holds \(0\.5 \[0\.49, 0\.51\]\) with 1 thread, all instructions; "
        r"fails \(0\.99 \[0\.98, 1\]\) with 2 threads, (AVX2|SSE4|all) instructions",
        claim["reason"],
    )
    values = [claim["unstable"][name]["measured"]["value"] for name in ("first", "second")]
    assert values == [0.5, 0.99] and claim["measured"]["value"] == 0.5
    first, second = record["numerics"], record["again"]["numerics"]
    assert (first["threads"], first["instructions"], second["threads"]) == (1, "all", 2)
    limited = read_record(project / "build/certify/toy/tiny/record.json")["measurements"]["limits"]
    assert limited["value"] == (0 if second["instructions"] == "all" else 2)
    assert record["measurements"]["limits"]["value"] == 0
    assert environment() == before  # the variables are the second kernel's alone
    assert main(["verify", "toy/tiny"]) == 0
    # again: nothing is run a third time
    monkeypatch.setattr("bookkit.cli.execute", None)
    assert main(["certify", "toy/tiny"]) == 0
    assert read_record(project / "results/toy/tiny/record.json") == record


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("planted-ioi", {"weights": "b", "notebook": "n"}, True),  # they are made with the numerics
        ("planted-ioi", {"weights": "b", "notebook": "m"}, False),
        ("smollm2-135m", {"weights": "b", "notebook": "n"}, False),
    ],
)
def test_only_weights_made_in_memory_may_differ(name, other, expected):
    def record(hashes, numerics):
        model = {"name": name, "sha256": hashes["weights"]}
        return dict.fromkeys(SAME) | {"model": model, "hashes": hashes, "numerics": numerics}

    first = record({"weights": "a", "notebook": "n"}, "1 thread")
    assert is_second(first, record(other, "2 threads")) == expected
    assert not is_second(first, first)


@pytest.mark.parametrize(
    ("machine", "flags", "instructions"),
    [
        ("x86_64", "fpu avx2 avx512f", "AVX2"),
        ("x86_64", "fpu avx2", "SSE4"),
        ("aarch64", "asimd", "all"),
    ],
)
def test_other_numerics_are_other_threads_and_older_instructions(
    machine, flags, instructions, tmp_path, monkeypatch
):
    about = tmp_path / "cpuinfo"
    about.write_text(f"processor\t: 0\nmodel name\t: A Processor\nflags\t\t: {flags}\n")
    monkeypatch.setattr(numerics, "CPUINFO", about)
    monkeypatch.setattr("platform.machine", lambda: machine)
    first = Numerics(threads=1, instructions="all", processor="x")
    second = numerics.other(first)
    assert second == Numerics(threads=2, instructions=instructions, processor="A Processor")
    assert numerics.other(second).threads == 1
    set_there = numerics.variables(second)
    assert set_there.pop("REPLIB_THREADS") == "2"
    assert set(set_there) == (set() if instructions == "all" else set(numerics.VARIABLES))
    monkeypatch.setenv("REPLIB_THREADS", "3")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    usual = numerics.usual()
    assert (usual.threads, usual.instructions) == (3, "ATEN_CPU_CAPABILITY=avx2")
    assert numerics.in_words(first.model_dump()) == "1 thread, all instructions"
