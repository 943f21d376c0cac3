"""Is the environment that this folder's `make` would use, and install `replib` into, its own?

    python workflow/own_venv.py .venv

Says in one line whose it is otherwise, and ends with 2: a link to the environment of another clone,
whose `replib` would come to be this one; and one that was copied or moved, whose programs start
with the Python of the place where it was made. A link to an environment that no other folder uses
is as good as the environment.
"""

import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit


def find_fault(venv: Path) -> str | None:
    """What is wrong with the environment `venv` of the folder that it stands in, if anything."""
    here, there = venv.parent.resolve(), venv.resolve()
    if not there.exists():
        return f"is a link to {there}, which is not there"
    made = re.search(r"""^(?:#!|'''exec' )"?(/.*?)/bin/python""", _start(there / "bin/pip"), re.M)
    if made and Path(made[1]).resolve() != there:
        return f"was made as {made[1]} and works only there"
    owners = [there.parent] if (there.parent / "pyproject.toml").is_file() else []
    for path in there.glob("lib/python3*/site-packages/replib-*.dist-info/direct_url.json"):
        url = urlsplit(json.loads(path.read_text(encoding="utf-8"))["url"])
        owners += [Path(unquote(url.path))] if url.scheme == "file" else []
    other = next((owner for owner in owners if owner.resolve() != here), None)
    return other and f"belongs to {other}, whose replib it runs"


def _start(script: Path) -> str:
    if not script.is_file():
        return ""
    with script.open("rb") as file:
        return file.read(4096).decode(errors="replace")


if __name__ == "__main__":
    environment = Path(sys.argv[1])
    if fault := find_fault(Path.cwd() / environment):
        remove = "rm" if environment.is_symlink() else "rm -r"
        line = f"setup: {environment} {fault}; for one of this folder's own: {remove} {environment}"
        print(" ".join(line.split()), file=sys.stderr)
        sys.exit(2)
