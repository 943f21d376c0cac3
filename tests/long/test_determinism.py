"""Part of `make determinism`: one chapter run again in other ways; where randomness may enter."""

import ast
import json
import re

import pytest
from determinism import CONTROLS, compare_all
from matrix import SMALL
from trust import ROOT

from bookkit.project import list_papers

# --- Records --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_gives_the_same_record_again(tmp_path):
    names = ("another folder and hash seed", "1 thread, 2 threads", "float32, float64")
    pair = ("factual-recall", "planted-facts")
    found = compare_all(*pair, tmp_path, names, **SMALL["factual-recall"])
    for row, faults in found:
        assert faults == [], row
        assert row[3] > 100
    assert found[2][0][5] > 0  # another number type was really another


def test_the_long_form_has_every_chapter():
    assert set(CONTROLS) == set(list_papers(ROOT))


# --- Random draws ---------------------------------------------------------------------------------

# From torch's global generator unless they are given another.
TORCH = r"torch\.((rand|randn|randint)(_like)?|randperm|normal|bernoulli|multinomial|poisson)"
IN_PLACE = r"(.*\.)?((xavier|kaiming)_)?(normal|uniform|random|bernoulli|exponential|cauchy"
IN_PLACE += "|geometric|log_normal|trunc_normal|orthogonal|sparse)_"
# Generators of their own, which need a seed; and those of everybody.
SEEDED = r"random\.Random|np\.random\.(default_rng|SeedSequence|Generator|PCG64|MT19937|Philox)"
GLOBAL = r"random\.\w+|np\.random\.\w+|torch(\.\w+)*\.manual_seed(_all)?"
GLOBAL += r"|(.*\.)?(seed|seed_all|set_seed|seed_everything)"


def global_draws(tree):
    """The names of each seeding of, or draw from, a generator that belongs to everybody, or of one
    without a seed; and of imports that hide such names.

    What peft and Transformers draw while a network is made comes from torch's global generator. So
    that may be seeded inside torch.random.fork_rng, which puts back what it was."""
    forks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items)
    ]
    inside = {node for fork in forks for node in ast.walk(fork)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            yield node.module
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if re.fullmatch(SEEDED, name):
            is_global = not (node.args or node.keywords)
        elif re.fullmatch(f"{TORCH}|{IN_PLACE}", name):
            is_global = "generator" not in {keyword.arg for keyword in node.keywords}
        else:
            is_forked = name == "torch.manual_seed" and node in inside
            is_global = re.fullmatch(GLOBAL, name) and not is_forked
        if is_global:
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
