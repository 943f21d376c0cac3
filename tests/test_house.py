"""The rules of the house: who may import whom, how long a module is, and who names a paper."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from bookkit.project import list_papers

ROOT = Path(__file__).parents[1]
ORDER = (
    "errors",
    "files",
    "markup",
    "hashes",
    "prompts",
    "models",
    "interventions",
    "clusters",
    "metrics",
)
ORDER += ("claims", "figures", "moving", "chapters")


def name_of(path):
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.glob("src/*/**/*.py"))}


def imports(name):
    """(module of ours that is imported, line, is it imported with the module?)."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        wanted = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports by dots"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                wanted.append(whole if whole in MODULES else node.module)
        for other in wanted:
            if other.partition(".")[0] in ("replib", "bookkit"):
                yield other, node.lineno, node in tree.body


EDGES = [(name, *edge) for name in MODULES for edge in imports(name)]


def breaches(is_breach):
    return [f"{a}:{line} imports {b}" for a, b, line, _ in EDGES if is_breach(a, b)]


def test_no_module_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_nothing_is_imported_in_a_circle():
    at_once = {name: {b for a, b, _, now in EDGES if a == name and now} for name in MODULES}
    TopologicalSorter(at_once).prepare()  # CycleError names the circle


def test_the_science_imports_downwards():
    """Each part only what stands before it in ORDER."""

    def rank(name):
        return ORDER.index(name.split(".")[1]) if name != "replib" else -1

    def is_breach(a, b):
        return a.startswith("replib.") and b.startswith("replib") and rank(b) > rank(a)

    assert breaches(is_breach) == []


def test_of_another_chapter_only_its_facts_are_imported():
    def is_breach(a, b):
        one, other = a.split("."), b.split(".")
        chapters = one[:2] == other[:2] == ["replib", "chapters"]
        foreign = chapters and one[2:3] != other[2:3] and len(one) > 3
        return foreign and other[2:] != ["stored"] and other[3:] != ["facts"]

    assert breaches(is_breach) == []


def test_the_workshop_names_no_paper():
    papers = [paper for paper in list_papers(ROOT) if not paper.startswith("method")]
    words = [*papers, *(paper.replace("-", "_") for paper in papers)]
    files = [p for p in ROOT.glob("src/bookkit/**/*") if p.is_file() and p.suffix != ".pyc"]
    found = [f"{p.name}: {word}" for p in files for word in words if word in p.read_text("utf-8")]
    assert found == []
