"""Does a run give the same record again? `make determinism`, and a part of it in the tests.

Every chapter runs on a random model and on the planted one that is its control, through the command
line, and pairs of records are compared. Then it runs, with few prompts, on the pretrained models.
Bounds stand here and were written before the first run.

*Identical*: every entry of the record but times. Nothing random is left, so there is no excuse.

*Rounding* is for runs that add in another order (two threads) or with more digits (float64). A
float32 has a relative error of u = 6e-8. A logit is a sum of d_model products, some hundred, in
each of a few layers, from parts of size 50 at most: 50 · u · sqrt(1000) = 1e-4, which is allowed
absolutely. A mean over prompts or an attention weight has less. What is divided by a difference of
logits, or comes out of a training of some hundred steps, has more: 1e-3 is allowed relatively.
Whole numbers, outcomes and lists of heads have no rounding and must be equal; a share of n items
moves by 1/n when one of them turns over, far more than the bound. Both can happen only where
rounding decides, because two candidates are as good as equal or a training magnifies the last bit.
Such a case is a fault here until it has been looked into and entered, with date and reason, in
`EXPLAINED`; an outcome that differs is always one.

The pretrained models run in the number type that their pages are published in, the chapter's own,
and once with the numerics of certification: other threads, older instructions. Float32 is held to
*Rounding*. *Outcomes* is for bfloat16, which has three digits: numbers differ by more than any
bound that would say something, outcomes may not.

float64 is of the model: its weights (the same numbers), its matrix products and norms. Softmax in
the recomputed attention, the logits that are read, and what chapters train themselves (sparse
autoencoders, probes, small networks) stay in float32, as their modules say.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matrix import SMALL
from trust import TRUST, run_chapter, show, write_table

from bookkit.records import Numerics, read_record, record_values
from bookkit.run.numerics import other, variables
from replib.models.sources import available_embedded

CONTROLS = {
    "ioi-circuit-reuse": ("tiny", "planted-ioi"),
    "factual-recall": ("tiny", "planted-facts"),
    "successor-heads": ("tiny", "planted-successor"),
    "context-knob": ("tiny", "planted-gate"),
    "copying-mamba": ("untrained-copying", "planted-copying"),
    "copying-pretrained": ("tiny",),
}
PRETRAINED = ("smollm2-135m", "gemma3-270m")  # where they are installed
TIMES = ("wall_time_s", "peak_memory_mb", "started", "seal")
ABSOLUTE, RELATIVE = 1e-4, 1e-3
IDENTICAL = "identical but for times"
ROUNDING = (
    f"counts, outcomes and heads equal; |a − b| ≤ {ABSOLUTE:g} + {RELATIVE:g} · max(|a|, |b|)"
)
OUTCOMES = "outcomes equal"
SAE = ("measurements.coverage_10", "measurements.sae_")
# (chapter, model, compared): date and reason, and how the entries that it explains begin.
EXPLAINED: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {
    ("successor-heads", "planted-successor", "float32, float64"): (
        "2026-11-25: 800 steps of Adam magnify a change of 1e-7 in the inputs of the sparse "
        "autoencoders until single features are others; what counts features moves by a few "
        "hundredths",
        ("claims.2.8.", "claims.2.9.null.", "claims.2.12.null.", *SAE),
    ),
}
# What a number type does not reach, by chapter.
NOT_REACHED = {
    "successor-heads": "sparse autoencoders and probes are float32 in both",
    "copying-mamba": "its networks are float32 in both",
}
COLUMNS = (
    *("chapter", "model", "compared", "values", "bound", "largest difference"),
    *(f"largest relative (values above {ABSOLUTE / RELATIVE:g})", "outcomes that differ", "kept"),
)
# From a folder outside the project, and with another hash seed in the kernel, against the runner's
# own setting.
ELSEWHERE = """
import sys
from bookkit.run import environment as runner
usual = runner.environment
runner.environment = lambda *given: usual(*given) | {"PYTHONHASHSEED": "4711"}
from bookkit.cli import main
sys.exit(main(sys.argv[1:]))
"""
PUBLISHED = "auto, or the chapter's own"  # number type: no option is given
OLDER = variables(other(Numerics(threads=1, instructions="all", processor="this one")))
# The number type and what else a run gets, and how two of their records are compared.
RUNS = {
    "usual": ("float32", {}),
    "again": ("float32", {}),
    "elsewhere": ("float32", {"start": ("-c", ELSEWHERE), "cwd": Path("/")}),
    "2 threads": ("float32", {"threads": 2}),
    "float64": ("float64", {}),
    "bfloat16": ("bfloat16", {}),
    "bfloat16 again": ("bfloat16", {}),
    "published": (PUBLISHED, {}),
    "other numerics": (PUBLISHED, {"variables": OLDER}),
}
COMPARED = {
    "run twice": ("usual", "again", IDENTICAL),
    "another folder and hash seed": ("usual", "elsewhere", IDENTICAL),
    "1 thread, 2 threads": ("usual", "2 threads", ROUNDING),
    "float32, float64": ("usual", "float64", ROUNDING),
    "run twice in bfloat16": ("bfloat16", "bfloat16 again", IDENTICAL),
}
AS_PUBLISHED = {
    "threads and instructions, in its number type": ("published", "other numerics", None),
}


def run(paper: str, model: str, how: str, out: Path, settings: Mapping[str, Any]) -> dict | str:
    """The record of one run; the last line it said if it did not finish."""
    out.mkdir()
    dtype, more = RUNS[how]
    options = () if dtype == PUBLISHED else ("--dtype", dtype)
    process = run_chapter(paper, model, settings, out, *options, **more)
    if process.returncode:
        return f"cannot: {process.stderr.strip().splitlines()[-1]}"
    return read_record(out / paper / model / "record.json")


def measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, outcomes and heads by their keys; other texts, such as notes, may hold rounded
    numbers."""
    found = {
        key: value
        for key, value in record_values(record).items()
        if key.startswith(("claims.", "measurements."))
        and (key.endswith(".outcome") or not isinstance(value, str))
    }
    return found | {f"heads.{role}": one for role, one in record["heads"].items()}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def difference(a: Mapping, b: Mapping, bound: str) -> tuple[list, set[str]]:
    """([how many numbers, the largest difference, the largest relative one, outcomes that differ],
    the keys of all that is beyond the bound) of two records."""
    x, y = measured(a), measured(b)
    faults = {key for key in x.keys() | y.keys() if x.get(key, ...) != y.get(key, ...)}
    outcomes = sum(key.endswith(".outcome") for key in faults)
    both = [key for key in x.keys() & y.keys() if is_number(x[key]) and is_number(y[key])]
    apart = {key: abs(x[key] - y[key]) for key in both}
    size = {key: max(abs(x[key]), abs(y[key])) for key in both}
    if bound == OUTCOMES:
        faults = {key for key in faults if key.endswith(".outcome")}
    elif bound == IDENTICAL:
        every = (a.keys() | b.keys()) - {*TIMES}
        faults |= {key for key in every if a.get(key, ...) != b.get(key, ...)}
    else:
        rounded = {key for key in both if apart[key] <= ABSOLUTE + RELATIVE * size[key]}
        faults -= {key for key in rounded if isinstance(x[key] + y[key], float)}  # not whole
    large = [apart[key] / size[key] for key in both if size[key] > ABSOLUTE / RELATIVE]
    largest = [float(f"{max(some, default=0.0):.2g}") for some in (apart.values(), large)]
    return [len(both), *largest, outcomes], faults


def row(paper: str, model: str, name: str, a: dict | str, b: dict | str) -> tuple[list, list[str]]:
    """(the row of a comparison in the table, the faults that nothing explains)."""
    bound = (COMPARED | AS_PUBLISHED)[name][2]
    for problem in (a, b):
        if isinstance(problem, str):
            return [paper, model, name, 0, bound, None, None, None, problem], [problem]
    bound = bound or (ROUNDING if a["model"]["dtype"] == "float32" else OUTCOMES)
    (n, *numbers), found = difference(a, b, bound)
    why, explained = EXPLAINED.get((paper, model, name), ("", ()))
    faults = [key for key in found if key.endswith(".outcome") or not key.startswith(explained)]
    kept = "no" if faults else f"but for {why}" if found else "yes"
    if "float64" in name and paper in NOT_REACHED:
        kept += f"; {NOT_REACHED[paper]}"
    return [paper, model, name, n, bound, *numbers, kept], sorted(faults)


def compare_all(paper: str, model: str, folder: Path, compared: Iterable[str], **settings) -> list:
    """`row` of each comparison, of runs that are made here, with these parameters."""
    pairs = {one: (COMPARED | AS_PUBLISHED)[one][:2] for one in compared}
    names = sorted({name for pair in pairs.values() for name in pair})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda name: run(paper, model, name, folder / name, settings), names)
        records = dict(zip(names, made, strict=True))
    return [row(paper, model, one, records[a], records[b]) for one, (a, b) in pairs.items()]


def main() -> int:
    rows, n_faults, began = [], 0, time.monotonic()
    jobs = [(p, name, COMPARED, {}) for p, names in CONTROLS.items() for name in names]
    installed = [name for name in PRETRAINED if name in available_embedded()]
    jobs += [(p, name, AS_PUBLISHED, SMALL[p]) for p in CONTROLS for name in installed]
    for paper, model, compared, settings in jobs:
        with tempfile.TemporaryDirectory() as folder:
            found = compare_all(paper, model, Path(folder), compared, **settings)
        for line, faults in found:
            rows.append(line)
            n_faults += bool(faults)
            print(*line, *faults[:10], sep="  ", flush=True)
    print(show(COLUMNS, rows))
    print(f"{len(rows)} comparisons, {n_faults} bounds broken")
    what = "Each chapter run again in another way, and how far the two records are apart."
    write_table(TRUST / "determinism.json", what, COLUMNS, rows, time.monotonic() - began)
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main())
