"""Files: read strictly, written whole or not at all, and the project's folder."""

import contextlib
import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from replib.errors import UsageError, find_control, one_line

SRC = Path(__file__).parents[1]  # of the packages


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends. If the
    block raises, what was there before stays as it was. A killed process leaves at most a hidden
    `.NAME.*.tmp` beside it."""
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
    killed. Elsewhere there is none for a moment. OSError if it cannot be moved: the old one stays.
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
    OSError if the content cannot be written: what was there before stays."""
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


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(path: str | Path, what: str) -> str:
    """A text file's content; UsageError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what} {path} is not text in UTF-8") from None
    except ValueError as error:  # of the path itself
        raise UsageError(f"{what} {path} cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML of plain parts: each key is a text and comes once, no text holds a control
    character, and there are no aliases, of which a few lines can stand for more than fits."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor}: aliases are not read; write it out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            problem = None
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                problem = "a key is not text; put it in quotes"
            elif key.value in seen:
                problem = f"key {key.value!r} is there twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if found := find_control(text, "\n\t"):
            problem = f"{found!r} cannot stand in a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        two_ways = {"int": "[-+]?0[0-9]|.*[:_]", "float": ".*[:_]"}.get(node.tag.rpartition(":")[2])
        if two_ways and re.match(two_ways, text):
            mend = "write digits alone, without zeros before them"
            problem = f"{text} is not one number everywhere (in YAML: base 8, base 60); {mend}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text


class _TextLoader(_Loader):
    """Every scalar is text, or null: an id 1.10 stays 1.10, a date stays as it is written, and
    a key called null is the word."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str, *, texts_only: bool = False) -> Any:
    """Parsed YAML; `texts_only` keeps every scalar as text or null."""
    try:
        return yaml.load(text, Loader=_TextLoader if texts_only else _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}{line}: {one_line(problem)}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # 2001-99-99, !!int x
        problem = one_line(f"{type(error).__name__}: {error}")
        raise UsageError(f"{where}: a value is not what it should be ({problem})") from None


def read_json(text: str, where: str) -> Any:
    """Parsed JSON by the letter: numbers are finite, each key is a text that can be shown and comes
    once."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
        if bad := [key for key in content if find_control(key)]:
            raise ValueError(f"{bad[0]!r} cannot be a key")
        return content

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=mapping)
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{where} is not valid JSON: {error}") from None


def sha256_file(path: Path) -> str:
    """Of the whole file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_file(path: str) -> Path | None:
    """The file "package/path inside it" of a package, which is not imported; None: not there."""
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / inside
    return file if file.is_file() else None


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one from `start` upward whose notebooks/ has claims files,
    else the one that holds this package."""
    start = Path.cwd() if start is None else start.resolve()
    for folder in (start, *start.parents, SRC.parent):
        if any((folder / "notebooks").glob("*/claims.yaml")):
            return folder
    raise UsageError(
        f"no notebooks/*/claims.yaml in {start} or above it; run replib inside the project's folder"
    )


def refuse_pointer(path: Path, where: str) -> None:
    """UsageError if the file is what Git LFS leaves where its real content was not fetched."""
    with path.open("rb") as file:
        if file.read(42) == b"version https://git-lfs.github.com/spec/v1":
            raise UsageError(f"{where} is a Git LFS pointer, not the file; run: git lfs pull")
