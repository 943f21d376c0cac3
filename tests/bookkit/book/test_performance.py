"""The bench on a tiny model, the floor against counted operations, and the page made from them."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import floor  # noqa: E402
import training  # noqa: E402
from test_interventions import network, random_pairs  # noqa: E402

from bookkit.book import reports  # noqa: E402
from replib.errors import UsageError  # noqa: E402
from replib.interventions.forward import positions_of  # noqa: E402
from replib.interventions.head_edits import read  # noqa: E402
from replib.interventions.network import Network  # noqa: E402
from replib.interventions.path_patching import path_patch  # noqa: E402
from replib.models.load import load_model  # noqa: E402
from replib.prompts.vocabulary import word_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def report():
    """The smallest bench, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLIB_THREADS", "1")
        patch.setattr(bench, "alone", lambda task, *args: (task(*args), bench.peak_bytes()))
        said: list[str] = []
        found = bench.bench(bench.SMOKE, said.append)
    assert "× floor" in said[0]
    said.clear()
    found["training"] = training.bench(rounds=1, seconds=0.01, say=said.append)
    found["is_old"] = found["training"]["is_old"] = False
    found["sweep"] = json.loads((ROOT / "benchmarks" / "sweep.json").read_text())
    assert "ours / it: 1.0 (1.0 to 1.0)" in said[-1]
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Random weights wide enough that matrices are most of the work, as in real models."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=768,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Network(load_model(str(folder)))


def test_floor_by_hand():
    """GPT-2 shape, d_model 32, 4 heads of 8, d_mlp 128, 4 layers; two prompts of 11 tokens."""
    net, pairs = network("gpt2"), random_pairs(0, n=2)
    w = floor.weights_of(net)
    assert (w.head, w.qo, w.kv, w.mlp) == (256, 2048, 2048, 2 * 32 * 128)
    base = floor.unedited(net, pairs, corrupted=True)
    # L1H0 to the logits at END: its write, then the MLPs of layers 1, 2 and 3, for two prompts
    end = pairs.positions["END"][:, None]
    got = floor.path_patch(net, pairs, "logits", "q", end, [(1, 0)]) - base
    assert got == 2 * 2 * (256 + 3 * w.mlp)
    # to a query of layer 2: MLP 1, the query; then the head's output and MLP 2, all of layer 3
    got = floor.path_patch(net, pairs, [(2, 1)], "q", end, [(1, 0)]) - base
    assert got == 2 * 2 * (256 + w.mlp + 256 + 256 + w.mlp + (w.qo + w.kv + w.mlp))


@pytest.mark.slow
def test_floor_is_a_lower_bound_and_near(wide):
    """Counted operations of real sweeps: never under the floor, and at most half above it."""
    net = wide
    pairs = random_pairs(1, n=6)
    cases = [("logits", "q", "END"), ([(5, 0)], "q", "END"), ([(3, 0), (4, 1)], "k", "S2")]
    for receivers, component, position in cases:
        top = net.n_layers if receivers == "logits" else max(layer for layer, _ in receivers)
        senders = net.heads(below=top)
        read(net, pairs)
        net.kept.clear()
        with FlopCounterMode(display=False) as counter:
            path_patch(net, pairs, receivers, component, position, senders)
        at = positions_of(pairs, position)
        least = floor.path_patch(net, pairs, receivers, component, at, senders)
        ratio = counter.get_total_flops() / least
        assert 1 <= ratio < 1.5, (receivers, component, position, ratio)


def test_contenders_of_the_bench_agree(report):
    for case in report["headlines"]:
        ours = next(row for row in case["rows"] if row["contender"] == "replib, float32")
        assert ours["difference"] < 1e-4 < case["gap"]
    assert {row["difference"] < 1e-4 for row in report["peers"]["sweeps"]} == {True}
    assert len(report["peers"]["sweeps"]) == 2
    assert report["peers"]["screen"]["spearman"]["head output, every position"] > 0.3


def test_both_scans_are_timed_on_both_lengths(report):
    rows = report["training"]["rows"]
    timed = {(row["architecture"], row["tokens"], row["contender"]) for row in rows}
    for architecture, theirs in (("mamba", "library"), ("mamba2", "library, chunk 32")):
        for tokens in (43, 131):
            assert {(architecture, tokens, name) for name in (theirs, "ours")} <= timed
    assert all(row["steps_per_second"] > 0 for row in rows)


def filled(text, report):
    return reports.fill(text, ROOT, [], lambda: report)


def test_page_is_made_from_the_report(report):
    page = filled((ROOT / "book" / "performance.md").read_text(), report)
    assert "<!--" not in page and "has changed since" not in page
    ours = report["headlines"][0]["rows"][1]
    assert f"| replib, float32 | {ours['seconds']:.1f} | " in page
    assert reports.growth(report["growth"]).startswith(b"\x89PNG")


def test_numbers_of_other_code_are_said_to_be_old(report):
    ages = "<!-- bench-table age --><!-- bench-table training-age -->"
    assert filled(ages, report) == ""
    said = filled(ages, report | {"is_old": True})
    assert "The code of the interventions has changed since" in said and "`make bench`" in said
    said = filled(ages, report | {"training": {"is_old": True}})
    assert "The code of training has changed since" in said and "make bench-training" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- bench headlines.0.speed -->", "no headlines.0.speed"),
        ("<!-- bench headlines.7.gap -->", "no headlines.7.gap"),
        ("<!-- bench-table everything -->", "no bench table 'everything'; there are .*peers"),
    ],
)
def test_a_name_that_is_not_in_the_report_stops_the_page(report, text, words):
    with pytest.raises(UsageError, match=words):
        filled(text, report)


def test_a_missing_or_broken_report_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"bench\.json is missing; make it with: make bench"):
        reports.read_benchmarks(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bench.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        reports.read_benchmarks(tmp_path)


def test_a_report_is_old_when_the_code_is_another(tmp_path, monkeypatch):
    assert reports.read_benchmarks(ROOT)["training"]["is_old"] is False
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    for name in ("bench", "training"):
        path = tmp_path / "benchmarks" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code_sha256": "0" * 64}))
    old = reports.read_benchmarks(tmp_path)
    assert old["is_old"] and old["training"]["is_old"]


def test_two_workers_are_nearly_twice_as_fast_where_the_report_says_so():
    """What the book claims of benchmarks/sweep.json, as it is checked in."""
    report = json.loads((ROOT / "benchmarks" / "sweep.json").read_text())
    assert report["jobs"] == 12 and report["ratio"] >= 1.7
    assert report["ratio"] == pytest.approx(report["one_s"] / report["two_s"], rel=0.01)


def test_training_is_three_times_as_fast_with_our_scan_where_the_report_says_so():
    """What the book claims of benchmarks/training.json, as it is checked in."""
    report = json.loads((ROOT / "benchmarks" / "training.json").read_text())
    ratio = {
        (row["architecture"], row["tokens"]): row["ours_is_faster_by"]
        for row in report["rows"]
        if row["contender"] in ("library", "library, chunk 256 (its default)")
    }
    assert min(ratio.values()) > 1 and max(ratio.values()) >= 3
