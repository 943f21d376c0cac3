"""Does a run give the same record again? `make determinism`, and a part of it in the tests.

Every chapter runs on a random model and on the planted one that is its control, through the command
line, and pairs of records are compared. Bounds stand here and were written before the first run.

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

float64 is of the model: its weights (the same numbers), its matrix products and norms. Softmax in
the recomputed attention, the logits that are read, and what chapters train themselves (sparse
autoencoders, probes, small networks) stay in float32, as their modules say.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trust import TRUST, run_chapter, show, write_table

CONTROLS = {
    "ioi-circuit-reuse": ("tiny", "planted-ioi"),
    "factual-recall": ("tiny", "planted-facts"),
    "successor-heads": ("tiny", "planted-successor"),
    "context-knob": ("tiny", "planted-gate"),
    "copying-mamba": ("tiny",),  # its planted model is a part of the chapter
}
TIMES = ("wall_time_s", "peak_memory_mb", "started", "seal")
ABSOLUTE, RELATIVE = 1e-4, 1e-3
IDENTICAL = "identical but for times"
ROUNDING = (
    f"counts, outcomes and heads equal; |a − b| ≤ {ABSOLUTE:g} + {RELATIVE:g} · max(|a|, |b|)"
)
# (chapter, model, compared): date and reason, and how the entries that it explains begin.
EXPLAINED: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {
    ("ioi-circuit-reuse", "planted-ioi", "float32, float64"): (
        "2026-11-25: this model hardly knows Colored Objects; clean and corrupted differ by 2e-4 "
        "logits, so that most effects there are rounding, and so is the order of heads by them",
        (
            *("claims.1.6.", "heads.content gatherer."),
            *("claims.1.3.measured.ceiling_cobj", "claims.1.3.null."),
        ),
    ),
    ("successor-heads", "planted-successor", "float32, float64"): (
        "2026-11-25: 800 steps of Adam magnify a change of 1e-7 in the inputs of the sparse "
        "autoencoders until single features are others; what counts features moves by a few "
        "hundredths",
        (
            *("claims.2.8.", "claims.2.9.null.", "claims.2.12.null."),
            *("measurements.coverage_10", "measurements.sae_"),
        ),
    ),
}
# What a number type does not reach, by chapter.
NOT_REACHED = {
    "successor-heads": "sparse autoencoders and probes are float32 in both",
    "copying-mamba": "the networks that the chapter trains are float32 in both",
}
COLUMNS = (
    *("chapter", "model", "compared", "values", "bound", "largest difference"),
    *(f"largest relative (values above {ABSOLUTE / RELATIVE:g})", "outcomes that differ", "kept"),
)


@dataclass(frozen=True)
class How:
    """How a run is started. `elsewhere`: from a folder outside the project, and with another hash
    seed in the kernel, against the runner's own setting."""

    threads: int = 1
    dtype: str = "float32"
    elsewhere: bool = False


USUAL = How()
COMPARED = {
    "run twice": (USUAL, USUAL),
    "another folder and hash seed": (USUAL, How(elsewhere=True)),
    "1 thread, 2 threads": (USUAL, How(threads=2)),
    "float32, float64": (USUAL, How(dtype="float64")),
    "run twice in bfloat16": (How(dtype="bfloat16"), How(dtype="bfloat16")),
}
EXACT = ("run twice", "another folder and hash seed", "run twice in bfloat16")
_ELSEWHERE = """
import sys
from bookkit.run import environment as runner
usual = runner.environment
runner.environment = lambda *given: usual(*given) | {"PYTHONHASHSEED": "4711"}
from bookkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(paper: str, model: str, how: How, out: Path, settings: Mapping[str, Any]) -> dict | str:
    """The record of one run; the last line it said if it did not finish."""
    out.mkdir()
    more = {"start": ("-c", _ELSEWHERE), "cwd": out} if how.elsewhere else {}
    dtype = ("--dtype", how.dtype)
    process = run_chapter(paper, model, settings, out, *dtype, threads=how.threads, **more)
    if process.returncode:
        return f"cannot: {process.stderr.strip().splitlines()[-1]}"
    return json.loads((out / paper / model / "record.json").read_text(encoding="utf-8"))


def entries(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything single in a record; claims by their ids."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from entries(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            name = value["id"] if isinstance(value, Mapping) and "id" in value else i
            yield from entries(value, f"{path}.{name}")
    else:
        yield path, node


@dataclass(frozen=True)
class Difference:
    """What two records do not have in common. `faults`: entries beyond the bound."""

    values: int
    absolute: float
    relative: float
    outcomes: int
    faults: tuple[str, ...]


def difference(a: Mapping[str, Any], b: Mapping[str, Any], exact: bool) -> Difference:
    """Compare two records by one of the two bounds."""
    whole = [dict(entries({k: v for k, v in r.items() if k not in TIMES})) for r in (a, b)]
    for one in whole:
        one.pop("calibration.speed", None)
    paths = whole[0].keys() | whole[1].keys()
    faults, values, absolute, relative, outcomes = [], 0, 0.0, 0.0, 0
    for path in paths:
        x, y = (one.get(path, ...) for one in whole)
        if exact and x != y:
            faults.append(path)
        if not (_is_measured(path, x) or _is_measured(path, y)):
            continue
        outcomes += path.endswith(".outcome") and x != y
        if not (_is_number(x) and _is_number(y)):
            if x != y:
                faults.append(path)
            continue
        values += 1
        apart, size = abs(x - y), max(abs(x), abs(y))
        absolute = max(absolute, apart)
        if size > ABSOLUTE / RELATIVE:
            relative = max(relative, apart / size)
        both_whole = isinstance(x, int) and isinstance(y, int)
        if apart > (0 if both_whole else ABSOLUTE + RELATIVE * size):
            faults.append(path)
    return Difference(values, absolute, relative, outcomes, tuple(sorted({*faults})))


def _is_measured(path: str, value: Any) -> bool:
    """A number, outcome or head; other texts, such as notes, may hold rounded numbers."""
    if path.startswith("claims."):
        return path.endswith(".outcome") or not isinstance(value, str)
    is_measurement = path.startswith("measurements.") and not isinstance(value, str)
    return path.startswith("heads.") or is_measurement


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compare_all(
    paper: str,
    model: str,
    folder: Path,
    compared: Sequence[str] = tuple(COMPARED),
    settings: Mapping[str, Any] | None = None,
    at_once: int = 2,
) -> dict[str, Difference | str]:
    """Each comparison by its name; a text where one of the two runs did not finish."""
    left = list(dict.fromkeys(COMPARED[name][0] for name in compared))
    wanted = left + [COMPARED[name][1] for name in compared]
    with ThreadPoolExecutor(at_once) as pool:
        outs = (folder / str(i) for i in range(len(wanted)))
        made = list(
            pool.map(lambda how, out: run(paper, model, how, out, settings or {}), wanted, outs)
        )
    found: dict[str, Difference | str] = {}
    for name, b in zip(compared, made[len(left) :], strict=True):
        a = made[left.index(COMPARED[name][0])]
        problem = next((one for one in (a, b) if isinstance(one, str)), None)
        found[name] = problem or difference(a, b, name in EXACT)
    return found


def row(paper: str, model: str, name: str, found: Difference | str) -> tuple[list, list[str]]:
    """(a row of the table, the faults that nothing explains)."""
    bound = IDENTICAL if name in EXACT else ROUNDING
    if isinstance(found, str):
        return [paper, model, name, 0, bound, None, None, None, found], [found]
    why, explained = EXPLAINED.get((paper, model, name), ("", ()))
    faults = [
        path for path in found.faults if path.endswith(".outcome") or not path.startswith(explained)
    ]
    kept = "no" if faults else f"but for {why}" if found.faults else "yes"
    if "float64" in name and paper in NOT_REACHED:
        kept += f"; {NOT_REACHED[paper]}"
    numbers = [*(float(f"{x:.2g}") for x in (found.absolute, found.relative)), found.outcomes]
    return [paper, model, name, found.values, bound, *numbers, kept], faults


def main() -> int:
    rows, n_faults, began = [], 0, time.monotonic()
    for paper, models in CONTROLS.items():
        for model in models:
            with tempfile.TemporaryDirectory() as folder:
                found = compare_all(paper, model, Path(folder), at_once=os.cpu_count() or 1)
            for name, one in found.items():
                line, faults = row(paper, model, name, one)
                rows.append(line)
                n_faults += bool(faults)
                print(*line, sep="  ", flush=True)
                for path in faults[:10]:
                    print(f"    {path}", flush=True)
    print(show(COLUMNS, rows))
    print(f"{len(rows)} comparisons, {n_faults} bounds broken")
    what = "Each chapter run again in another way, and how far the two records are apart."
    write_table(TRUST / "determinism.json", what, COLUMNS, rows, time.monotonic() - began)
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main())
