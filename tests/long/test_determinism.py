"""Part of `make determinism`: one chapter run again in other ways; where randomness may enter."""

import ast
import json

import determinism
import pytest
from determinism import CONTROLS, ROOT, compare_all, difference, row

from bookkit.project import list_papers

# --- Records --------------------------------------------------------------------------------------

SMALL = {"n_facts": 24, "n_tune": 6, "n_random": 3, "n_transfer": 4, "n_new": 4}
PAIR = ("factual-recall", "planted-facts")
NAMES = ("another folder and hash seed", "1 thread, 2 threads", "float32, float64")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compare_all(*PAIR, tmp_path_factory.mktemp("out"), NAMES, SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_the_same_record_again(found, name):
    line, faults = row(*PAIR, name, found[name])
    assert faults == [], line
    assert found[name].values > 100


def test_another_number_type_was_really_another(found):
    assert found["float32, float64"].absolute > 0


def test_the_long_form_has_every_chapter():
    assert set(CONTROLS) == set(list_papers(ROOT))


RECORD = {
    "claims": [
        {"id": "1.1", "outcome": "holds", "n": 10, "measured": {"value": 0.5}, "note": "x"},
        {"id": "1.2", "outcome": "fails", "n": 3, "measured": {"value": 2.0}, "note": ""},
    ],
    "measurements": {"loss": {"value": 3.0, "interval": [2.0, None], "unit": "nats"}},
    "heads": {"mover": {"heads": [[0, 1]], "rule": "r"}},
    "threads": 1,
    "wall_time_s": 3.0,
    "calibration": {"speed": 1.0, "d_model": 8},
}


def changed(change):
    record = json.loads(json.dumps(RECORD))
    change(record)
    return record


def claim(**new):
    return lambda record: record["claims"][0].update(new)


@pytest.mark.parametrize(
    ("change", "exact", "rounding"),
    [
        (lambda record: record.update(wall_time_s=9.0), (), ()),
        (lambda record: record["calibration"].update(speed=2.0), (), ()),
        (lambda record: record.update(threads=2), ("threads",), ()),
        (claim(note="y"), ("claims.1.1.note",), ()),
        (claim(measured={"value": 0.5004}), ("claims.1.1.measured.value",), ()),
        (claim(measured={"value": 0.502}), *[("claims.1.1.measured.value",)] * 2),
        (claim(measured={"value": None}), *[("claims.1.1.measured.value",)] * 2),
        (claim(measured={}), *[("claims.1.1.measured.value",)] * 2),
        (claim(n=11), *[("claims.1.1.n",)] * 2),
        (claim(outcome="unclear"), *[("claims.1.1.outcome",)] * 2),
        (
            lambda record: record["heads"]["mover"].update(heads=[[0, 2]]),
            *[("heads.mover.heads.0.1",)] * 2,
        ),
        (
            lambda record: record["measurements"]["loss"].update(interval=[2.0, 9.0]),
            *[("measurements.loss.interval.1",)] * 2,
        ),
    ],
)
def test_what_counts_as_a_difference(change, exact, rounding):
    other = changed(change)
    assert difference(RECORD, other, True).faults == exact
    assert difference(RECORD, other, False).faults == rounding


def test_differences_are_measured_and_explained_only_where_a_reason_stands(monkeypatch):
    found = difference(RECORD, changed(claim(measured={"value": 0.6}, n=11)), False)
    assert found.absolute == 1 and found.relative == pytest.approx(1 / 6)
    assert found.outcomes == 0 and len(found.faults) == 2
    name = "float32, float64"
    assert row(*PAIR, name, found)[0][-1] == "no"
    explained = {(*PAIR, name): ("2026-01-01: two heads alike", ("claims.1.1.",))}
    monkeypatch.setattr(determinism, "EXPLAINED", explained)
    line, faults = row(*PAIR, name, found)
    assert faults == [] and line[-1] == "but for 2026-01-01: two heads alike"
    turned = difference(RECORD, changed(claim(outcome="fails")), False)
    assert turned.outcomes == 1
    assert row(*PAIR, name, turned)[1] == ["claims.1.1.outcome"]
    assert row(*PAIR, name, "cannot: no")[1] == ["cannot: no"]


# --- Random draws ---------------------------------------------------------------------------------

# Draws from torch's global generator unless they are given another.
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")
DRAWS += tuple(f"{name}_like" for name in ("rand", "randn", "randint"))
IN_PLACE = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_")
IN_PLACE += ("geometric_", "log_normal_", "trunc_normal_", "orthogonal_", "sparse_")
IN_PLACE += tuple(f"{who}_{how}_" for who in ("xavier", "kaiming") for how in ("normal", "uniform"))
# Generators of their own, which need a seed.
SEEDED = ("random.Random", "numpy.random.default_rng", "numpy.random.SeedSequence")
SEEDED += tuple(f"numpy.random.{bits}" for bits in ("PCG64", "MT19937", "Philox", "RandomState"))
SEEDED += ("numpy.random.Generator", "torch.Generator.manual_seed")

# What peft and Transformers draw while a network is made comes from the global generator, which
# nobody can change from outside. So it is seeded inside torch.random.fork_rng, which puts back what
# it was: nothing else sees it.
ALLOWED = {
    ("src/replib/architectures.py", "torch.manual_seed"): "the libraries' own initialisation",
    ("src/replib/finetuning.py", "torch.manual_seed"): "peft draws the adapter's first matrix",
}


def dotted(node, names):
    """`torch.random.manual_seed`, with what names were imported as; empty for other expressions."""
    match node:
        case ast.Name(id=name):
            return names.get(name, "")
        case ast.Attribute(value=value, attr=attr):
            before = dotted(value, names)
            return f"{before}.{attr}" if before else ""
    return ""


def imported(tree):
    names = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=some):
                for one in some:
                    names[one.asname or one.name.split(".")[0]] = (
                        one.name if one.asname else one.name.split(".")[0]
                    )
            case ast.ImportFrom(module=str(module), names=some):
                names |= {one.asname or one.name: f"{module}.{one.name}" for one in some}
    return names


def global_draws(code):
    """(line, name, is it inside fork_rng?) of each seeding of, or draw from, a generator that
    belongs to everybody, or of one without a seed."""
    tree = ast.parse(code)
    names, found = imported(tree), []

    def is_global(call):
        name = dotted(call.func, names)
        attr = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        given = {keyword.arg for keyword in call.keywords}
        if name in SEEDED:
            return not (call.args or call.keywords)
        if name.startswith(("random.", "numpy.random.")):
            return True
        if name.startswith("torch.") and name.split(".")[-1] in DRAWS:
            return "generator" not in given
        if attr in IN_PLACE:
            return "generator" not in given
        return name.split(".")[-1] in ("seed", "seed_all", "set_seed", "seed_everything") or (
            name.startswith("torch.") and name.split(".")[-1] in ("manual_seed", "manual_seed_all")
        )

    def visit(node, forked):
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
            forked = forked or any(
                isinstance(c, ast.Call) and dotted(c.func, names) == "torch.random.fork_rng"
                for c in calls
            )
        if isinstance(node, ast.Call) and is_global(node):
            found.append((node.lineno, dotted(node.func, names) or node.func.attr, forked))
        for child in ast.iter_child_nodes(node):
            visit(child, forked)

    visit(tree, False)
    return found


def sources():
    """(path, code) of everything that computes a number; of notebooks the code cells."""
    for folder in ("src/replib", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.relative_to(ROOT).as_posix(), "\n".join(code)


def test_every_random_draw_comes_from_a_generator_of_the_run():
    found = {
        (path, name): (line, forked)
        for path, code in sources()
        for line, name, forked in global_draws(code)
    }
    assert set(found) == set(ALLOWED), found
    assert all(forked for _, forked in found.values()), found
    assert len(list(sources())) > 50


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.manual_seed(0)",
        "import torch as t\nt.cuda.manual_seed_all(0)",
        "from torch import manual_seed\nmanual_seed(0)",
        "import torch\ntorch.random.seed()",
        "import torch\nx = torch.randn(3)",
        "from torch import randperm as shuffled\nshuffled(3)",
        "import torch\nx = torch.empty(3).normal_()",
        "import torch\ntorch.nn.init.xavier_uniform_(x)",
        "import torch\nx = torch.rand_like(y)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.normal(size=3)",
        "import numpy as np\nrng = np.random.default_rng()",
        "from numpy.random import choice\nchoice(3)",
        "from numpy import random\nrandom.shuffle(x)",
        "import random\nrandom.seed(0)",
        "import random\nrandom.shuffle(x)",
        "from random import choice\ndef f():\n    return choice([1])",
        "import random\nrng = random.Random()",
        "import transformers\ntransformers.set_seed(0)",
        "from transformers import set_seed\nset_seed(0)",
    ],
)
def test_a_planted_draw_is_found(code):
    assert len(global_draws(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ng = torch.Generator().manual_seed(0)\nx = torch.randn(3, generator=g)",
        "import torch\nx.normal_(generator=g)",
        "import numpy as np\nrng = np.random.default_rng(3)\nrng.normal(size=3)\nrng.shuffle(x)",
        "import random\nrng = random.Random(3)\nrng.shuffle(x)\nrng.random()",
        "from replib.metrics import rng\nrng(seed, 'a').choice(3)",
        "random = 3\nrandom.shuffle(x)",
    ],
)
def test_a_generator_of_one_s_own_is_none(code):
    assert global_draws(code) == []


def test_only_what_stands_inside_fork_rng_is_forked():
    code = "import torch\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)\n"
    assert global_draws(code) == [(3, "torch.manual_seed", True)]
    assert global_draws(code + "torch.manual_seed(0)\n")[1] == (4, "torch.manual_seed", False)
