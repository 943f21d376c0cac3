"""The parts of a checkout, and one hash for each that the numbers of a chapter depend on.

Nothing here imports torch: the command line, the workflow and the book ask these questions often.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from replib.files import sha256_text

PACKAGE = Path(__file__).parent


_NO_PAPER = re.compile(rb"(?m)^arxiv: *(null|~)? *(#.*)?$")  # read without parsing: asked for often


def list_chapters(root: Path) -> list[str]:
    """The names of everything that can be run, papers and methods: a notebook with its claims."""
    return sorted(path.name.removesuffix(".claims.yaml") for path in _claims_files(root))


def list_papers(root: Path) -> list[str]:
    """The names of the papers of which the project has a notebook and a claims file."""
    methods = list_methods(root)
    return [name for name in list_chapters(root) if name not in methods]


def list_methods(root: Path) -> list[str]:
    """The names of the pages of the method: their claims files have no arXiv number."""
    found = (path for path in _claims_files(root) if _NO_PAPER.search(path.read_bytes()))
    return sorted(path.name.removesuffix(".claims.yaml") for path in found)


def _claims_files(root: Path) -> Iterator[Path]:
    for path in root.glob("notebooks/*/claims.yaml"):
        if path.with_name(path.name.replace(".claims.yaml", ".ipynb")).is_file():
            yield path


# --- hashes ---------------------------------------------------------------------------------------


def words(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def parameters_hash(defaults: Mapping[str, Any], profile: Mapping[str, Any]) -> str:
    """sha256 of what a profile sets: the notebook's defaults with the profile's values on top."""
    return sha256_text(json.dumps(dict(defaults) | dict(profile), sort_keys=True))
