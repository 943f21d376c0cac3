"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends.

    If the block raises, what was there before stays as it was. A killed process leaves at most a
    hidden `.NAME.*.tmp` beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        os.chmod(temp, 0o755)
        yield temp
        if folder.exists():
            shutil.rmtree(folder)
        temp.rename(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that takes the place of an earlier one only when all of it is on the disk.

    Raises:
        OSError: the content cannot be written; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
