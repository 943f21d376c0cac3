"""Part of `make determinism`: one chapter run again in other ways; where randomness may enter."""

import ast
import json
import re

import pytest
from determinism import AS_PUBLISHED, OUTCOMES, ROUNDING, compare_all, difference
from matrix import SMALL
from trust import ROOT


@pytest.mark.slow
def test_a_run_gives_the_same_record_again(tmp_path):
    names = ("another folder and hash seed", "1 thread, 2 threads", "float32, float64")
    pair = ("factual-recall", "planted-facts")
    found = compare_all(*pair, tmp_path, names, **SMALL["factual-recall"])
    for row, faults in found:
        assert faults == [], row
        assert row[3] > 100
    assert found[2][0][5] > 0  # another number type was really another


@pytest.mark.slow
@pytest.mark.embedded
def test_a_record_survives_other_threads_and_instructions(tmp_path):
    """One page on one pretrained model, in the number type that it is published in."""
    pair = ("method-residual-stream", "smollm2-135m")
    ((row, faults),) = compare_all(*pair, tmp_path, AS_PUBLISHED, n_prompts=4)
    assert faults == [] and row[4] == ROUNDING, row
    assert row[5] > 0  # the numerics were really others


def test_a_bound_on_outcomes_lets_numbers_differ():
    def record(outcome, value):
        claim = {"id": "1.1", "outcome": outcome, "measured": {"value": value}}
        claim |= {"interval": None, "null": None}
        return {"claims": [claim], "measurements": {}, "heads": {}}

    assert difference(record("holds", 0.5), record("holds", 0.1), OUTCOMES)[1] == set()
    (numbers, faults) = difference(record("holds", 0.5), record("fails", 0.5), OUTCOMES)
    assert faults == {"claims.1.1.outcome"} and numbers[-1] == 1


# From torch's global generator unless they are given another.
TORCH = r"torch\.((rand|randn|randint)(_like)?|randperm|normal|bernoulli|multinomial|poisson)"
IN_PLACE = r"(.*\.)?((xavier|kaiming)_)?(normal|uniform|random|bernoulli|exponential|cauchy"
IN_PLACE += "|geometric|log_normal|trunc_normal|orthogonal|sparse)_"


def global_draws(tree):
    """The names of torch's draws without a generator, and of its seeding outside fork_rng, inside
    which peft and Transformers may draw while a network is made. Numpy's global generator is
    refused by ruff (NPY002); a generator without a seed shows when a run is repeated."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    forks = [block for block in blocks if "fork_rng" in ast.unparse(block.items)]
    inside = {node for fork in forks for node in ast.walk(fork)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "generator" not in {word.arg for word in node.keywords}:
            name = ast.unparse(node.func)
            if re.fullmatch(f"{TORCH}|{IN_PLACE}", name):
                yield name
            if re.fullmatch(r"torch(\.\w+)*\.manual_seed(_all)?", name) and node not in inside:
                yield name


def test_every_random_draw_comes_from_a_generator_of_the_run():
    code = {
        path: path.read_text(encoding="utf-8")
        for folder in ("src/replib", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        code[path] = "\n".join(sources)
    found = {(path, name) for path in code for name in global_draws(ast.parse(code[path]))}
    assert found == set()
    assert len(code) > 50
