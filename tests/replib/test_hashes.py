"""Hashes by meaning: what leaves them alone, and what changes exactly the right ones."""

import json

import pytest

from replib import hashes
from replib.hashes import code_hash, library_files, library_hash, notebook_hash, pins_hash

FILES = {
    "lib/__init__.py": '"""The library."""\n',
    "lib/top.py": '''
"""How scores are made."""
import numpy as np
from lib import base
from lib.base import middle
from lib.errors import Bad

def score(x: int, base_rate: float = 0.5) -> float:
    """The score of x."""
    if x < 0:
        raise Bad(f"{x} is below 0")
    return middle(x) + base.SHIFT * np.mean([x, base_rate])  # shifted
''',
    "lib/base.py": """
from functools import partial
SHIFT = 3
LOW, HIGH = 1, 2
def middle(x): return inner(x) + LOW
def inner(x):
    local = [y * 2 for y in range(x)]
    return sum(local)
def other(x): return inner(x) - HIGH
class Kept:
    width: int = 4
    def grow(self): return self.width + SHIFT
""",
    "lib/errors.py": "class Bad(ValueError): pass\n",
}
CODE = "from lib.top import score\nscore(2)"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(file=..., changed)`: the library with some of its files changed, made anew."""
    made = []

    def make(changes=(), files=FILES):
        src = tmp_path / str(len(made))
        made.append(src)
        texts = dict(files)
        for name, old, new in changes:
            assert old in texts[name]
            texts[name] = texts[name].replace(old, new)
        for name, text in texts.items():
            (src / name).parent.mkdir(parents=True, exist_ok=True)
            (src / name).write_text(text)
        monkeypatch.setattr(hashes, "SRC", src)

    make()
    return make


def notebook(*sources, text=""):
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
    return json.dumps({"cells": cells})


NOT_COMPUTED = [
    ("lib/top.py", "The score of x.", "What x scores."),
    ("lib/top.py", "# shifted", "# moved"),
    ("lib/top.py", "x: int, base_rate: float", "x, base_rate"),
    ("lib/top.py", "is below 0", "is negative"),
    ("lib/top.py", "import numpy as np", "import numpy.linalg\nimport numpy as np"),
    ("lib/base.py", "    return sum(local)", '    """Doubled."""\n\n    return sum(local)'),
    ("lib/base.py", "inner", "doubled"),
    ("lib/base.py", "def other(x): return inner(x)", "def other(x): return 5 * inner(x)"),
    ("lib/base.py", "SHIFT = 3", "SHIFT: int = 3"),
    ("lib/base.py", "width: int = 4", "width: int = 5"),
]
COMPUTED = [
    ("lib/top.py", "base_rate: float = 0.5", "base_rate: float = 0.6"),
    ("lib/top.py", "if x < 0", "if x < 1"),
    ("lib/top.py", "import numpy as np", "import torch as np"),
    ("lib/top.py", "base.SHIFT", "base.HIGH"),
    ("lib/base.py", "SHIFT = 3", "SHIFT = 4"),
    ("lib/base.py", "LOW, HIGH = 1, 2", "HIGH, LOW = 1, 2"),
    ("lib/base.py", "y * 2", "y * 3"),  # two calls away
    ("lib/base.py", "def middle(x): return inner(x)", "def middle(x): return -inner(x)"),
    ("lib/base.py", "SHIFT = 3\n", "SHIFT = 3\nprint('imported')\n"),
]


@pytest.mark.parametrize("change", [*NOT_COMPUTED, *COMPUTED])
def test_what_is_computed_counts_wherever_it_stands_and_nothing_else(project, change):
    before = code_hash(CODE)
    project([change])
    assert (code_hash(CODE) == before) == (change in NOT_COMPUTED)


def test_a_renamed_module_and_a_moved_function_change_nothing(project):
    text = "from lib.base import Kept\nKept().grow()"
    before = code_hash(CODE), code_hash(text), notebook_hash(notebook(CODE))
    moved = {name.replace("base.py", "parts/middle.py"): text for name, text in FILES.items()}
    moved["lib/top.py"] = (
        moved["lib/top.py"]
        .replace("from lib import base\n", "from lib.parts import middle as base\n")
        .replace("lib.base", "lib.parts.middle")
    )
    project(files=moved)
    text = text.replace("lib.base", "lib.parts.middle")
    assert (code_hash(CODE), code_hash(text), notebook_hash(notebook(CODE))) == before
    inner = "def inner(x):\n    local = [y * 2 for y in range(x)]\n    return sum(local)\n"
    import_it = "from lib.errors import inner\nSHIFT = 3"
    changes = [("lib/base.py", inner, ""), ("lib/base.py", "SHIFT = 3", import_it)]
    project([*changes, ("lib/errors.py", "class", f"{inner}class")])
    assert code_hash(CODE) == before[0]


def test_two_functions_that_are_exchanged_between_their_readers(project):
    readers = "def a(): return {}() + 1\ndef b(): return {}() - 1\n"
    read = "def f(): return 10\ndef g(): return 20\n"
    code = "from lib.two import a, b\na(), b()"
    project(files={"lib/two.py": readers.format("f", "g") + read})
    before = code_hash(code)
    project(files={"lib/two.py": readers.format("g", "f") + read})
    assert code_hash(code) != before


def test_names_that_are_only_local_or_left_out_are_not_followed(project):
    code = "from lib.base import other\ndef run(inner): return [other for other in inner]\nrun(1)"
    assert library_files(notebook(code)) == []
    assert [path.name for path in library_files(notebook(code + "\nother(1)"))] == ["base.py"]
    before = code_hash(CODE, ["lib.base.middle"])
    project([("lib/base.py", "y * 2", "y * 3")])
    assert code_hash(CODE, ["lib.base.middle"]) == before


def test_a_module_used_as_an_object_and_one_named_in_a_text_are_followed_whole(project):
    for code in ("from lib import base\nuse(base)", "use('lib.base')"):
        assert [path.name for path in library_files(notebook(code))] == ["base.py"]
    before = code_hash("use('lib.base')")
    project([("lib/base.py", "return inner(x) - HIGH", "return inner(x) + HIGH")])
    assert code_hash("use('lib.base')") != before


def test_a_notebook_is_its_code(project):
    before = notebook_hash(notebook(CODE))
    assert notebook_hash(notebook(f"# why\n{CODE}", text="prose")) == before
    assert notebook_hash(notebook(CODE.replace("2", "3"))) != before


@pytest.mark.parametrize("code", ["def", "a\0b", "'\ud800'", "-" * 10_000 + "1"])
def test_code_that_does_not_parse_reaches_nothing(project, code):
    assert library_files(notebook(code)) == []
    assert library_hash(notebook(code)) == library_hash(notebook(""))
    assert library_hash(notebook(code, CODE)) == library_hash(notebook(CODE))


def test_pins_count_in_any_order(tmp_path):
    path = tmp_path / "requirements.txt"
    assert pins_hash(path) is None
    path.write_text("# first\na==1\nb==2\n")
    before = pins_hash(path)
    path.write_text("b==2  # last\n\na==1\n")
    assert pins_hash(path) == before
    path.write_text("b==2\na==1.1\n")
    assert pins_hash(path) != before
