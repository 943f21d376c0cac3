"""The bench on a tiny model, the floor against counted operations, and the page made from them."""

import json

import bench
import floor
import pytest
import training
from small_book import ROOT
from test_interventions import make_pairs, network
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from bookkit.book import reports
from replib.interventions.forward import positions_of
from replib.interventions.head_edits import read
from replib.interventions.path_patching import path_patch

CHECKED_IN = {
    name: json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    for name in ("sweep", "training")
}


def test_floor_by_hand():
    """GPT-2 shape, d_model 32, 4 heads of 8, d_mlp 128, 4 layers; two prompts."""
    net, pairs = network("gpt2"), make_pairs(0, n=2)
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
def test_floor_is_a_lower_bound_and_near(monkeypatch):
    """Counted operations of real sweeps: never under the floor, and at most half above it, with
    weights wide enough that matrices are most of the work, as in real models."""
    size = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(bench.RANDOM, "wide", LlamaConfig(vocab_size=49152, **size, **heads))
    pairs = make_pairs(1, n=6)
    cases = [("logits", "q", "END"), ([(5, 0)], "q", "END"), ([(3, 0), (4, 1)], "k", "S2")]
    with bench.open_model("wide") as net:
        for receivers, component, position in cases:
            top = net.n_layers if receivers == "logits" else max(layer for layer, _ in receivers)
            senders = net.heads(below=top)
            read(net, pairs)
            net.kept.clear()
            with FlopCounterMode(display=False) as counter:
                path_patch(net, pairs, receivers, component, position, senders)
            at = positions_of(pairs, position)
            least = floor.path_patch(net, pairs, receivers, component, at, senders)
            assert 1 <= counter.get_total_flops() / least < 1.5, (receivers, component, position)


@pytest.mark.slow
def test_contenders_of_the_smallest_bench_agree_and_make_the_page(monkeypatch):
    monkeypatch.setenv("REPLIB_THREADS", "1")
    monkeypatch.setattr(bench, "alone", lambda task, *args: (task(*args), bench.peak_bytes()))
    said: list[str] = []
    report = bench.bench(bench.SMOKE, said.append)
    assert "× floor" in said[0]
    report["training"] = training.bench(rounds=1, seconds=0.01, say=said.append)
    assert "ours / it: 1.0 (1.0 to 1.0)" in said[-1]
    report["is_old"] = report["training"]["is_old"] = False
    report = json.loads(json.dumps(report | {"sweep": CHECKED_IN["sweep"]}))
    for case in report["headlines"]:
        ours = next(row for row in case["rows"] if row["contender"] == "replib, float32")
        assert ours["difference"] < 1e-4 < case["gap"]
    assert [row["difference"] < 1e-4 for row in report["peers"]["sweeps"]] == [True, True]
    assert report["peers"]["screen"]["spearman"]["head output, every position"] > 0.3
    text = (ROOT / "book" / "performance.md").read_text()
    page = reports.fill(text, ROOT, [], lambda: report)
    assert "<!--" not in page and "has changed since" not in page
    ours = report["headlines"][0]["rows"][1]
    assert f"| replib, float32 | {ours['seconds']:.1f} | " in page
    assert reports.growth(report["growth"]).startswith(b"\x89PNG")


def test_the_reports_say_what_the_book_claims():
    """Two workers are nearly twice as fast; our scan trains up to three times as fast."""
    sweep = CHECKED_IN["sweep"]
    assert sweep["jobs"] == 12 and sweep["ratio"] >= 1.7
    assert sweep["ratio"] == pytest.approx(sweep["one_s"] / sweep["two_s"], rel=0.01)
    theirs = ("library", "library, chunk 256 (its default)")
    rows = [row for row in CHECKED_IN["training"]["rows"] if row["contender"] in theirs]
    ratios = [row["ours_is_faster_by"] for row in rows]
    assert len(rows) == 4 and min(ratios) > 1 and max(ratios) >= 3
