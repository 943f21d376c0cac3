"""Files and folders that appear whole or not at all."""

import contextlib
import ctypes
import errno
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
        put_in_place(temp, folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def put_in_place(new: Path, folder: Path) -> None:
    """Move `new` to `folder`, in place of what is there; another process may be doing the same.

    Where the system can exchange two folders, there is a whole one at every moment, whoever is
    killed. Elsewhere there is none for a moment.

    Raises:
        OSError: it cannot be moved; what was there stays.
    """
    aside = []
    while True:
        try:
            os.rename(new, folder)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _exchange(new, folder):
            aside.append(new)
            break
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old-"))
        aside.append(old)
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, old)
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step, by Linux's renameat2; False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


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
