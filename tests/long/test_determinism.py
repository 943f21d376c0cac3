"""Part of `make determinism`: one chapter run again in other ways; where randomness may enter."""

import ast
import json
import re

import pytest
from determinism import CONTROLS, compare_all, row
from trust import ROOT

from bookkit.project import list_papers

# --- Records --------------------------------------------------------------------------------------

SMALL = {"n_facts": 24, "n_tune": 6, "n_random": 3, "n_transfer": 4, "n_new": 4}
PAIR = ("factual-recall", "planted-facts")
NAMES = ("another folder and hash seed", "1 thread, 2 threads", "float32, float64")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compare_all(*PAIR, tmp_path_factory.mktemp("out"), NAMES, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_the_same_record_again(found, name):
    line, faults = row(*PAIR, name, found[name])
    assert faults == [], line
    assert found[name].values > 100


@pytest.mark.slow
def test_another_number_type_was_really_another(found):
    assert found["float32, float64"].absolute > 0


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

# What peft and Transformers draw while a network is made comes from the global generator, which
# nobody can change from outside. So it is seeded inside torch.random.fork_rng, which puts back what
# it was: nothing else sees it.
ALLOWED = {
    ("src/replib/chapters/copying_mamba/networks.py", "torch.manual_seed", True),  # initialisation
    ("src/replib/chapters/context_knob/training.py", "torch.manual_seed", True),  # an adapter's
}


def global_draws(code):
    """(name, is it inside fork_rng?) of each seeding of, or draw from, a generator that belongs to
    everybody, or of one without a seed; and of imports that hide such names."""
    nodes = list(ast.walk(ast.parse(code)))
    forks = [
        node
        for node in nodes
        if isinstance(node, ast.With)
        and any("fork_rng" in ast.unparse(item) for item in node.items)
    ]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            yield node.module, False
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if re.fullmatch(SEEDED, name):
            is_global = not (node.args or node.keywords)
        elif re.fullmatch(f"{TORCH}|{IN_PLACE}", name):
            is_global = "generator" not in {keyword.arg for keyword in node.keywords}
        else:
            is_global = re.fullmatch(GLOBAL, name)
        if is_global:
            yield name, any(fork.lineno <= node.lineno <= fork.end_lineno for fork in forks)


def sources():
    """(path, code) of everything that computes a number; of notebooks the code cells."""
    for folder in ("src/replib", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.relative_to(ROOT).as_posix(), "\n".join(code)


def test_every_random_draw_comes_from_a_generator_of_the_run():
    found = {(path, *draw) for path, code in sources() for draw in global_draws(code)}
    assert found == ALLOWED
    assert len(list(sources())) > 50
