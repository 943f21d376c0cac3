"""The chapters of a checkout: a folder of notebooks/ each, with the notebook and its claims.

Nothing here imports torch: the command line, the workflow and the book ask these questions often.
"""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_NO_PAPER = re.compile(rb"(?m)^arxiv: *(null|~)? *(#.*)?$")  # read without parsing: asked for often


def chapter_folder(root: Path, name: str) -> Path:
    """Where a chapter's notebook stands, with all that belongs to it."""
    return root / "notebooks" / name


def list_chapters(root: Path) -> list[str]:
    """The names of everything that can be run, papers and methods: a notebook with its claims."""
    folders = (path.parent for path in root.glob("notebooks/*/claims.yaml"))
    return sorted(folder.name for folder in folders if (folder / f"{folder.name}.ipynb").is_file())


def list_papers(root: Path) -> list[str]:
    """The names of the papers of which the project has a notebook and a claims file."""
    methods = list_methods(root)
    return [name for name in list_chapters(root) if name not in methods]


def list_methods(root: Path) -> list[str]:
    """The names of the pages of the method: their claims files have no arXiv number."""
    claims = {name: chapter_folder(root, name) / "claims.yaml" for name in list_chapters(root)}
    return [name for name, path in claims.items() if _NO_PAPER.search(path.read_bytes())]


def chapter_module(name: str, part: str = "") -> ModuleType | None:
    """What the library has for one chapter alone: `replib.chapters.<name>`, or a module of it."""
    path = f"replib.chapters.{name.replace('-', '_')}"
    if "." in name or importlib.util.find_spec(path) is None:
        return None
    path = f"{path}.{part}" if part else path
    return importlib.import_module(path) if importlib.util.find_spec(path) else None


def stored_module(name: str) -> ModuleType | None:
    """What a chapter says of its stored trainings (see `replib.chapters.stored`); None: it has
    none."""
    return chapter_module(name, "stored")


def words(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
