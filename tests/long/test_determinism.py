"""Part of `make determinism`: one chapter run again in other ways; where randomness may enter."""

import ast
import json

import pytest
from determinism import CONTROLS, ROOT, compare_all, row

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
    ("src/replib/chapters/copying_mamba/networks.py", "torch.manual_seed"),  # initialisation
    ("src/replib/chapters/context_knob/training.py", "torch.manual_seed"),  # an adapter's first
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
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.relative_to(ROOT).as_posix(), "\n".join(code)


def test_every_random_draw_comes_from_a_generator_of_the_run():
    found = {
        (path, name): (line, forked)
        for path, code in sources()
        for line, name, forked in global_draws(code)
    }
    assert set(found) == ALLOWED, found
    assert all(forked for _, forked in found.values()), found
    assert len(list(sources())) > 50
