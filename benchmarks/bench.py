"""Exact path patching against its peers and against the machine, in one run.

    python benchmarks/bench.py [--smoke] [--out FILE]

Prints tables and writes what the book's page on performance is made from (benchmarks/bench.json).
All run on the same model, prompts and threads; every contender of the first two tables in a process
of its own, so that its peak memory is its own. Times are of one call, after another to warm up; the
matrix-product rate is measured before and after it, in the same process, and the better counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import floor  # noqa: E402
import reference  # noqa: E402

from bookkit.book.reports import MEASURED  # noqa: E402
from bookkit.run import environment as runner  # noqa: E402
from replib.hashes import code_hash  # noqa: E402
from replib.interventions.forward import positions_of  # noqa: E402
from replib.interventions.head_edits import attention_row, read, resample_ablate, scale_head  # noqa: E402
from replib.interventions.network import Head, Network  # noqa: E402
from replib.interventions.path_patching import PathPatch, path_patch  # noqa: E402
from replib.metrics import layer_matched, rng  # noqa: E402
from replib.models.device import find_dtype  # noqa: E402
from replib.models.load import load_model  # noqa: E402
from replib.prompts.colored_objects import colored_objects_pairs  # noqa: E402
from replib.prompts.ioi import ioi_pairs  # noqa: E402
from replib.prompts.pairs import PromptPairs  # noqa: E402

# Random weights in the papers' shapes: speed does not depend on what the weights are.
RANDOM = {
    "gpt2 (random weights)": transformers.GPT2Config(),
    "pythia-160m (random weights)": transformers.GPTNeoXConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    ),
}
TOKENIZER_OF = "smollm2-135m"  # for the random models' prompts


@dataclass(frozen=True)
class Sizes:
    """What is run. `movers` are the receivers in each model, in one layer."""

    movers: dict[str, list[Head]]
    main: str  # the model of the tables
    n_prompts: int = 50
    n_obvious: int = 3  # senders for which the obvious reference is run
    n_peer: int = 3  # prompts for TransformerLens' sweeps
    n_kinds: int = 16
    n_null: int = 100
    n_draws: int = 200
    growth: tuple[int, ...] = (16, 64, 256)
    mid_layers: int = 6  # receivers of the other stages lie this far below the movers


FULL = Sizes(
    movers={
        "smollm2-135m": [(23, 0), (23, 2), (23, 3)],
        "gemma3-270m": [(12, 1), (12, 0)],
        **{name: [(9, 0), (9, 1)] for name in RANDOM},
    },
    main="smollm2-135m",
)
SMOKE = Sizes(
    movers={"tiny": [(2, 0), (2, 1)]},
    main="tiny",
    n_prompts=4,
    n_obvious=3,
    n_peer=2,
    n_kinds=3,
    n_null=4,
    n_draws=3,
    growth=(2, 4),
    mid_layers=1,
)


# --- one contender, in a process of its own ------------------------------------------------------


@contextmanager
def open_model(name: str, dtype: str = "float32") -> Iterator[Network]:
    if name not in RANDOM:
        yield Network(load_model(name, dtype=dtype))
        return
    tokenizer = load_model(TOKENIZER_OF).tokenizer
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        transformers.AutoModelForCausalLM.from_config(RANDOM[name]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Network(load_model(folder, dtype=dtype))


def prompts(net: Network, task: str, n: int) -> PromptPairs:
    return {"ioi": ioi_pairs, "colored objects": colored_objects_pairs}[task](
        net.model.tokenizer, n, seed=0
    )


def rate(dtype: torch.dtype = torch.float32, n: int = 2048) -> float:
    """Matrix products: floating-point operations a second, the best of three."""
    a, b = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def clock(call: Callable[[], Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """{seconds, rate, result} of one call."""
    before, start = rate(dtype), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rate": max(before, rate(dtype)), "result": result}


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) << 10
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Case:
    """One sweep of path patching: what `replib.interventions.path_patch` is asked for."""

    model: str
    receivers: Any
    component: str = "q"
    position: str = "END"
    task: str = "ioi"
    n_prompts: int = 50
    one_a_layer: bool = False  # one sender a layer, to bound the time of slow contenders

    def senders(self, net: Network) -> list[Head]:
        if self.receivers == "logits":
            top = net.n_layers
        elif self.receivers[0] == "resid_post":
            top = self.receivers[1] + 1
        else:
            top = max(layer for layer, _ in self.receivers)
        heads = net.heads(below=top)
        return heads[:: net.n_heads] if self.one_a_layer else heads

    def words(self) -> str:
        if self.receivers == "logits":
            return "logits, patched at END"
        if self.receivers[0] == "resid_post":
            return f"residual stream after layer {self.receivers[1]}, patched at {self.position}"
        heads = ", ".join(f"L{layer}H{head}" for layer, head in self.receivers)
        where = "every position" if self.position == "all" else self.position
        return f"{self.component} of {heads}, patched at {where}"


def ours(case: Case, dtype: str = "float32") -> dict[str, Any]:
    """Our sweep, all senders; with the floor of the same sweep."""
    with open_model(case.model, dtype) as net:
        pairs, senders = prompts(net, case.task, case.n_prompts), case.senders(net)

        def sweep(some: PromptPairs) -> PathPatch:
            return path_patch(net, some, case.receivers, case.component, case.position, senders)

        sweep(pairs[:2])
        out = clock(lambda: sweep(pairs), getattr(torch, dtype))
        patch = out.pop("result")
        at = positions_of(pairs, case.position)
        flops = floor.path_patch(net, pairs, case.receivers, case.component, at, senders)
        rows = torch.tensor(senders)
        return out | {
            "floor": flops / out["rate"],
            "flops": flops,
            "logit_diff": patch.logit_diff[rows[:, 0], rows[:, 1]].numpy(),
            "gap": float(patch.clean.mean() - patch.corrupted.mean()),
            "senders": len(senders),
        }


def obvious(case: Case, n_senders: int) -> dict[str, Any]:
    """The obvious reference on senders spread over the layers, scaled up to all of them.

    A sender costs two passes whichever it is; the caches are made once.
    """
    with open_model(case.model) as net, torch.inference_mode():
        pairs, senders = prompts(net, case.task, case.n_prompts), case.senders(net)
        picks = np.linspace(0, len(senders) - 1, n_senders).round().astype(int)

        def sweep(some: PromptPairs, heads: list[Head]) -> torch.Tensor:
            return reference.path_patch(
                net.model, some, heads, case.receivers, case.component, case.position, False
            )

        sweep(pairs, senders[:1])  # at full size: the first call pays for its memory
        one = clock(lambda: sweep(pairs, [senders[picks[0]]]))
        all_ = clock(lambda: sweep(pairs, [senders[i] for i in picks]))
        each = (all_["seconds"] - one["seconds"]) / (n_senders - 1)
        return {
            "seconds": one["seconds"] + each * (len(senders) - 1),
            "measured_seconds": all_["seconds"],
            "measured_senders": n_senders,
            "picks": picks,
            "logit_diff": all_["result"].numpy(),
        }


def equally_long(net: Network, n: int) -> PromptPairs:
    """IOI prompts of one length, and with the runs' roles exchanged: TransformerLens' sweeps are
    denoising, ours noising."""
    pairs = prompts(net, "ioi", max(4 * n, 8))
    length = pairs.length.mode().values
    pairs = pairs[pairs.length == length][:n]
    width = int(length)
    cut = replace(pairs, clean=pairs.clean[:, :width], corrupted=pairs.corrupted[:, :width])
    return cut.swapped()


def peers(model: str, source: Head, n_prompts: int) -> dict[str, Any]:
    """TransformerLens' own sweeps where they compute what ours can, and attribution patching.

    `source` is the sender of their direct-path sweep, which goes through every later head.
    """
    with open_model(model) as net:
        pairs = equally_long(net, n_prompts)
        tl, heads = net.model, net.heads()

        def metric(logits: torch.Tensor) -> torch.Tensor:
            return reference.end_logit_diff(logits, pairs).mean()

        def cache_of(tokens: torch.Tensor) -> Any:
            return tl.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_z"))[1]

        def all_positions() -> torch.Tensor:
            return patching.get_act_patch_attn_head_out_all_pos(
                tl, pairs.clean, cache_of(pairs.corrupted), metric
            )

        def all_positions_ours() -> torch.Tensor:
            edits = [resample_ablate([head]) for head in heads]
            return read(net, pairs, edits, everywhere=True).logit_diff.mean(-1)

        def direct() -> torch.Tensor:
            sweep = patching.get_act_patch_direct_path(
                tl, pairs.clean, cache_of(pairs.corrupted), cache_of(pairs.clean), metric,
                *source, "q", verbose=False,
            )  # fmt: skip
            return torch.stack([sweep[head] for head in later])

        def direct_ours() -> torch.Tensor:
            patches = [
                path_patch(net, pairs, [head], "q", "all", [source], freeze_mlps=True)
                for head in later
            ]
            return torch.stack([patch.logit_diff[source].mean() for patch in patches])

        later = [head for head in heads if head[0] > source[0]]
        rows = []
        with torch.inference_mode():
            read(net, pairs[:1])
            sweeps = {"head output, every position": (all_positions, all_positions_ours)}
            if net.blocks[0].ln1_post is None:  # they refuse norms after attention
                sweeps["direct path into later queries"] = (direct, direct_ours)
            for name, (theirs, mine) in sweeps.items():
                a = clock(theirs)
                net.kept.clear()
                b = clock(mine)
                difference = (a["result"].flatten() - b["result"]).abs().max()
                rows.append(
                    {
                        "sweep": name,
                        "passes": len(b["result"]),
                        "theirs": a["seconds"],
                        "ours": b["seconds"],
                        "difference": float(difference),
                    }
                )
                if name.startswith("head output"):
                    exact = b["result"] - read(net, pairs).logit_diff.mean()
            patch = path_patch(net, pairs.swapped(), "logits")
            stage_1 = (patch.clean - patch.logit_diff).mean(-1)  # supporters positive, as theirs

        def screen() -> Any:
            scores = [
                attribution_patch(
                    tl,
                    pairs.corrupted[i : i + 1],
                    pairs.clean[i : i + 1],
                    lambda logits, i=i: reference.end_logit_diff(logits, pairs[[i]]).mean(),
                ).node_scores
                for i in range(len(pairs))
            ]
            by_head = {(n.layer, n.head): n for n in scores[0] if n.head is not None}
            return [np.mean([s[by_head[head]] for s in scores]) for head in heads]

        tl.original_model.requires_grad_(True)  # so that there is a backward pass
        c = clock(screen)
        spearman = {
            "head output, every position": stats.spearmanr(c["result"], exact.numpy()),
            "path patching to the logits": stats.spearmanr(c["result"], stage_1.flatten().numpy()),
        }
        return {
            "model": model,
            "prompts": len(pairs),
            "sweeps": rows,
            "screen": {
                "seconds": c["seconds"],
                "heads": len(heads),
                "spearman": {name: float(value.statistic) for name, value in spearman.items()},
            },
        }


def by_model(sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """`kinds` and `growth` of every model, each loaded once."""
    rows: dict[str, list[dict[str, Any]]] = {"kinds": [], "growth": []}
    for model in sizes.movers:
        with open_model(model) as net:
            rows["kinds"] += kinds(net, model, sizes)
            if model not in RANDOM:
                rows["growth"] += growth(net, model, sizes)
    return rows


def kinds(net: Network, model: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Every stage, receiver kind and position of one model, each against its floor."""
    movers = sizes.movers[model]
    low = movers[0][0] - sizes.mid_layers
    mid = [(low, 0), (low + 1, 1)]
    cases = [
        Case(model, "logits"),
        Case(model, movers),
        Case(model, mid, "v", "S2"),
        Case(model, mid, "k", "S2"),
        Case(model, mid, "q", "S2"),
        Case(model, ("resid_post", low), position="S2"),
        Case(model, movers, position="all", one_a_layer=True),
    ]
    rows = []
    pairs = prompts(net, "ioi", sizes.n_kinds)

    def row(words: str, sweep: Callable[[], Any], flops: int, n: int) -> None:
        net.kept.clear()
        out = clock(sweep)
        rows.append(
            {
                "model": model,
                "what": words,
                "interventions": n,
                "prompts": len(pairs),
                "seconds": out["seconds"],
                "floor": flops / out["rate"],
            }
        )

    read(net, pairs)  # warm
    for case in cases:
        senders = case.senders(net)
        given = (case.receivers, case.component)
        at = positions_of(pairs, case.position)
        flops = floor.path_patch(net, pairs, *given, at, senders)
        row(
            case.words(),
            lambda: path_patch(net, pairs, *given, case.position, senders),  # noqa: B023
            flops,
            len(senders),
        )
    if model in RANDOM:
        return rows
    pairs = prompts(net, "ioi", sizes.n_null)
    attend = torch.zeros(pairs.clean.shape).scatter(1, pairs.positions["S2"][:, None], 1.0)
    generator = rng(0, "bench")
    edits = [
        attention_row(sorted(layer_matched(movers, net.n_layers, net.n_heads, generator)), attend)
        for _ in range(sizes.n_draws)
    ]
    null = f"null: attention of {len(movers)} random heads at END"
    flops = floor.edits_at_end(net, pairs, edits)
    row(null, lambda: read(net, pairs, edits), flops, len(edits))
    heads = [scale_head(head, 2.0) for head in net.heads()]
    flops = floor.edits_at_end(net, pairs, heads)
    row("each head scaled at END", lambda: read(net, pairs, heads), flops, len(heads))
    return rows


def growth(net: Network, model: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Time of the movers' stage by number of prompts, on short and long prompts."""
    rows = []
    for task in ("ioi", "colored objects"):
        whole = prompts(net, task, max(sizes.growth))
        path_patch(net, whole[:2], sizes.movers[model])
        for n in sizes.growth:
            pairs = whole[:n]
            out = clock(lambda: path_patch(net, pairs, sizes.movers[model]))  # noqa: B023
            rows.append(
                {
                    "model": model,
                    "heads": net.n_layers * net.n_heads,
                    "senders": len(net.heads(below=sizes.movers[model][0][0])),
                    "positions": round(float(whole.length.double().mean())),
                    "prompts": n,
                    "seconds": out["seconds"],
                }
            )
    return rows


def _in_child(task: Callable[..., Any], arguments: tuple) -> tuple[Any, int]:
    return task(*arguments), peak_bytes()


def alone(task: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """What `task` returns, and the peak memory of the process that ran it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_in_child, task, arguments).result()


# --- the whole run -------------------------------------------------------------------------------


def headline(case: Case, n_obvious: int, bfloat16: bool) -> dict[str, Any]:
    """One case by every contender: rows of the table, with ratios."""
    mine, mine_peak = alone(ours, case)
    slow, slow_peak = alone(obvious, case, n_obvious)
    difference = np.abs(mine["logit_diff"][slow["picks"]] - slow["logit_diff"]).max()
    rows = [
        {
            "contender": "obvious reference",
            "seconds": slow["seconds"],
            "measured_senders": slow["measured_senders"],
            "measured_seconds": slow["measured_seconds"],
            "peak_bytes": slow_peak,
        },
        {
            "contender": "replib, float32",
            "seconds": mine["seconds"],
            "peak_bytes": mine_peak,
            "difference": float(difference),
        },
    ]
    if bfloat16:
        half, half_peak = alone(ours, case, "bfloat16")
        error = np.abs(half["logit_diff"] - mine["logit_diff"])
        rows.append(
            {
                "contender": "replib, bfloat16",
                "seconds": half["seconds"],
                "peak_bytes": half_peak,
                "difference": float(error.max()),
                "mean_difference": float(error.mean()),
            }
        )
    rows.append({"contender": "floor, float32", "seconds": mine["floor"]})
    for row in rows:
        row["times_faster_than_reference"] = slow["seconds"] / row["seconds"]
        row["times_floor"] = row["seconds"] / mine["floor"]
    return {
        "model": case.model,
        "what": case.words(),
        "senders": mine["senders"],
        "prompts": case.n_prompts,
        "gap": mine["gap"],
        "rate": mine["rate"],
        "flops": mine["flops"],
        "rows": rows,
    }


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fitted exponent of time in the number of prompts, for each model and prompt length."""
    out = []
    for key in sorted({(row["model"], row["heads"], row["positions"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["heads"], row["positions"]) == key]
        fit = stats.linregress(
            [math.log(row["prompts"]) for row in own], [math.log(row["seconds"]) for row in own]
        )
        out.append(
            dict(zip(("model", "heads", "positions"), key, strict=True))
            | {"slope": float(fit.slope)}
        )
    return out


def bench(sizes: Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it; what the page on performance is made from."""
    start = time.perf_counter()
    bfloat16 = find_dtype("auto", torch.device("cpu")) == torch.bfloat16
    movers = sizes.movers[sizes.main]
    one = Case(sizes.main, movers, n_prompts=sizes.n_prompts)
    every = replace(one, position="all", one_a_layer=True)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "code_sha256": code_hash(MEASURED),
        "machine": platform.machine(),
        "processor": processor(),
        "threads": int(os.environ["REPLIB_THREADS"]),
        "torch": torch.__version__,
        "bfloat16": bfloat16,
    }
    report["headlines"] = []
    for case in (one, every):
        report["headlines"].append(headline(case, sizes.n_obvious, bfloat16))
        say(show_headline(report["headlines"][-1]))
    report["peers"], _ = alone(peers, sizes.main, (movers[0][0] - 1, 0), sizes.n_peer)
    say(show_peers(report["peers"]))
    report |= alone(by_model, sizes)[0]
    say(show_kinds(report["kinds"]))
    report["slopes"] = slopes(report["growth"])
    say(show_growth(report))
    report["seconds"] = time.perf_counter() - start
    return report


def processor() -> str:
    """The processor's name, as it gives it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return named[1] if named else platform.processor() or "unknown"


# --- tables on the terminal ----------------------------------------------------------------------


def show_headline(case: dict[str, Any]) -> str:
    lines = [
        f"\n{case['model']}, {case['prompts']} IOI prompts, {case['senders']} senders → "
        f"{case['what']}; matrix products at {case['rate'] / 1e9:.0f} GFLOP/s",
        f"{'':20}{'seconds':>9}{'× faster':>10}{'× floor':>9}{'peak GB':>9}{'max. diff.':>12}",
    ]
    for row in case["rows"]:
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else ""
        diff = f"{row['difference']:.1e}" if "difference" in row else ""
        lines.append(
            f"{row['contender']:20}{row['seconds']:9.2f}{row['times_faster_than_reference']:10.1f}"
            f"{row['times_floor']:9.2f}{peak:>9}{diff:>12}"
        )
    slow = case["rows"][0]
    lines.append(
        f"reference: {slow['measured_senders']} senders took {slow['measured_seconds']:.1f} s, "
        f"scaled up; clean − corrupted gap {case['gap']:.2f} logits"
    )
    return "\n".join(lines)


def show_peers(peers: dict[str, Any]) -> str:
    lines = [f"\nTransformerLens' own sweeps, {peers['model']}, {peers['prompts']} prompts"]
    for row in peers["sweeps"]:
        lines.append(
            f"  {row['sweep']} ({row['passes']} heads): theirs {row['theirs']:.1f} s, ours "
            f"{row['ours']:.1f} s, {row['theirs'] / row['ours']:.1f} × as fast, "
            f"max. diff. {row['difference']:.1e}"
        )
    screen = peers["screen"]
    ranks = ", ".join(f"{value:.2f} ({name})" for name, value in screen["spearman"].items())
    lines.append(f"  attribution patching: {screen['seconds']:.1f} s, rank correlation {ranks}")
    return "\n".join(lines)


def show_kinds(rows: list[dict[str, Any]]) -> str:
    lines = ["", f"{'':96}{'seconds':>9}{'× floor':>9}"]
    for row in rows:
        words = f"{row['model']}: {row['what']} ({row['interventions']} × {row['prompts']} prompts)"
        ratio = row["seconds"] / row["floor"]
        lines.append(f"{words:96}{row['seconds']:9.2f}{ratio:9.2f}")
    return "\n".join(lines)


def show_growth(report: dict[str, Any]) -> str:
    lines = ["\ntime by prompts (movers' stage)"]
    for fit in report["slopes"]:
        key = ("model", "positions")
        own = [row for row in report["growth"] if all(row[k] == fit[k] for k in key)]
        times = ", ".join(f"{row['prompts']}: {row['seconds']:.1f} s" for row in own)
        lines.append(
            f"  {fit['model']}, {fit['heads']} heads, {fit['positions']} positions: {times}; "
            f"time ~ prompts^{fit['slope']:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--smoke", action="store_true", help="the smallest run, on a random model")
    parser.add_argument("--out", type=Path, default=HERE / "bench.json")
    options = parser.parse_args()
    os.environ.update(runner.environment())  # of the children, as of a chapter's kernel
    report = bench(SMOKE if options.smoke else FULL, lambda text: print(text, flush=True))
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{report['seconds']:.0f} s; written to {options.out}")


if __name__ == "__main__":
    main()
