"""Notebooks are read: short cells, and nothing hidden but what a reader need not see."""

import json
from pathlib import Path
from statistics import median

import pytest

from bookkit.book.cells import source_of
from bookkit.project import chapter_folder, list_chapters, list_methods

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "src/bookkit/templates/chapter/chapter.ipynb"
# How a line of the cell of imports may begin; the rest belongs to the names of an import.
IMPORTS = ("import ", "from ", "    ", ")", "#", "figures.style()", "claims = Claims.load(")
FILES = {name: chapter_folder(ROOT, name) / f"{name}.ipynb" for name in list_chapters(ROOT)}


@pytest.mark.parametrize("name", [*FILES, "template"])
def test_a_notebook_is_read(name):
    notebook = json.loads(FILES.get(name, TEMPLATE).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = [source_of(cell) for cell in cells]
    code = [[line for line in text.splitlines() if line.strip()] for text in texts]
    assert sum(map(len, code)) <= (120 if name in list_methods(ROOT) else 300)
    assert median(map(len, code)) <= 8
    assert max(len(line) for lines in code for line in lines) <= 76
    for cell, lines in zip(cells, code, strict=True):
        tags = set(cell["metadata"].get("tags", ()))
        if any(tag.startswith(("hide", "remove")) for tag in tags):
            assert all(line.startswith(IMPORTS) for line in lines), lines[0]
        elif "parameters" not in tags:
            assert len(lines) <= 25, lines[0]
