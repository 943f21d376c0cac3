"""Hostile input, made from the project's own files: `make fuzz`, and a part of it in the tests.

    python tests/long/fuzz.py --cases 5000 --seed 0 --out results/trust/fuzz.json

A target reads one kind of input with the functions that the command line calls. A case is accepted,
or refused with a `UsageError` of one short line. Anything else is a fault: another exception, a
hang, a line that a terminal would not show as it is, a file outside the folder that was given, a
process or a connection, or something that was accepted and is not whole.
"""

import argparse
import ast
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import hypothesis
import matplotlib.pyplot
import transformers
import typer
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trust import HERE, ROOT, show, write_table

from bookkit import cli, records
from bookkit.book import atlas, pages, tables
from bookkit.book.runs import find_runs
from bookkit.new import new_paper
from bookkit.project import chapter_folder, list_papers
from bookkit.records import check_record, read_record, record_values, seal, write_record
from bookkit.run import resources as sizing
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import RunFailed
from bookkit.run.plan import Run, absolute_model, changed_since, plan
from bookkit.sweep import command, read_sweep
from replib.chapters.context_knob import contexts
from replib.chapters.context_knob import stored as adapters
from replib.chapters.copying_mamba import stored as cells
from replib.chapters.copying_mamba.training_grid import cell_of
from replib.chapters.factual_recall import facts
from replib.chapters.stored import NotStored
from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.claims.tables import verdict_table
from replib.errors import UsageError
from replib.files import read_yaml
from replib.hashes import library_hash, notebook_hash
from replib.models.load import load_model, prepare_model
from replib.models.sources import EMBEDDED, KNOWN
from replib.models.tiny import tiny_parts
from replib.models.unpack import quiet
from replib.prompts import files as prompts
from replib.prompts.vocabulary import word_tokenizer

SECONDS = 20  # a case that takes longer hangs
LONGEST = 1200  # characters of a refusal
TOY, IOI, KNOB = "toy", "ioi-circuit-reuse", "context-knob"


class NotWhole(Exception):
    """Something was accepted, and what came of it is not whole; or it was refused badly."""


class Hang(BaseException):
    """A case took too long; no Exception, so that nobody catches it on the way."""


@dataclass(frozen=True)
class Target:
    """One kind of input. `read` gets a case and an empty folder, the current one."""

    name: str
    cases: st.SearchStrategy
    read: Callable[[Any, Path], None]
    share: int  # of the cases, in relation to the other targets


# --- one case -------------------------------------------------------------------------------------

_OPENED = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "truncate", "chmod", "chown")
_FOREIGN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_allowed: Path | None = None  # while a case runs, the folder that it may write to
_outside: list[str] = []


def _audit(event: str, values: tuple) -> None:
    """Note what a case does outside its folder, whichever library does it."""
    if _allowed is None:
        return
    if event in _FOREIGN:
        _outside.append(f"{event} {values[:1]!r}")
    is_change = event.startswith("os.") and event[3:] in _CHANGES
    if is_change or (event == "open" and values[2] & _OPENED):
        second = ("os.link", "os.symlink")  # what they point to stays as it is
        paths = values[1:2] if event in second else values[: 2 if event == "os.rename" else 1]
        for path in (path for path in paths if not isinstance(path, int)):
            where = Path(os.path.abspath(os.fsdecode(path)))
            if not where.is_relative_to(_allowed) and where != Path(os.devnull):
                _outside.append(f"{event} {where}")


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raises NotWhole at the end if anything was written elsewhere, Hang if it takes long."""
    global _allowed

    def stop(number: int, frame: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _outside.clear()
    _allowed = folder
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        _allowed = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if _outside:
            raise NotWhole(f"outside the folder that was given: {_outside[0]}")


def judge(target: Target, case: Any, folder: Path) -> str:
    """accepted or refused; anything else is raised."""
    try:
        with watched(folder):
            target.read(case, folder)
    except UsageError as error:
        text = str(error)
        is_line = text.strip() and len(text) <= LONGEST and text.isprintable()
        need(is_line, f"a refusal that is no short line: {text!r}")
        return "refused"
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # a library in Rust panics with one that is no Exception
        raise NotWhole(repr(error)) from error
    return "accepted"


def run(target: Target, n_cases: int, seed: int) -> Counter:
    """Judge up to `n_cases` cases of a target, the same ones for the same seed; how they ended.
    What hypothesis raises has the simplest case of each fault."""
    counts: Counter = Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=n_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def each(case: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as place:
            counts[judge(target, case, Path(place).resolve())] += 1

    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _warm_up()
        each()
    return counts


def share(target: Target, n_cases: int) -> int:
    """How many of all cases are of this target."""
    return math.ceil(n_cases * target.share / sum(one.share for one in TARGETS))


@cache
def _warm_up() -> None:
    """Import what the functions import on their way, and watch from now on."""
    import replib.chapters.context_knob.training
    import replib.chapters.copying_mamba.training  # noqa: F401

    matplotlib.get_configdir(), matplotlib.get_cachedir()  # makes the folders
    sys.dont_write_bytecode = True
    sys.addaudithook(_audit)  # for the life of the process


def need(true: bool, otherwise: str) -> None:
    if not true:
        raise NotWhole(otherwise)


def whole(call: Callable, *arguments: Any) -> Any:
    """The call's result; what it refuses here was accepted before."""
    try:
        return call(*arguments)
    except UsageError as error:
        raise NotWhole(f"accepted before, now refused: {error}") from None


def inside(path: Path, folder: Path) -> None:
    need(Path(os.path.abspath(path)).is_relative_to(folder), f"{path} is outside")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# --- hostile parts --------------------------------------------------------------------------------


HOSTILE = (
    *("", " ", "\n", "a\nb", "tiny\n", "\0", "a\0b", "\x1b[31mred", "\x85", "\u2028", "\u202egnp"),
    *("\ud800", "\udcff", "\ufeff", "é" * 300, "x" * 300, "y" * 5000, "z" * 100_000, "\U0010ffff"),
    *("../up", "../../up", "/etc/passwd", "a/../../b", "..", ".", "/", "~", "~nobody-here/x"),
    *("-", "--", "-p", "--help", "null", "true", "1e999", "NaN", "-1", "0x10", "1_000", "٣", "3.0"),
    *("*a", "&a b", "!!python/object/apply:os.getcwd []", "a: b", "a #b", "- a", "[a", "{a", "'a"),
    *("<script>alert(1)</script>", "{record}`x`", "${HOME}", "$(id)", "%s", "`", "[MEM]", "=", ","),
    *("9" * 300, "9" * 5000, "1,2", "[1,2]", "[", "[[1],[2]]", "None", "none", "1e-400", "7"),
)
NUMBERS = (
    *(0, 1, 2, 7, -1, 10**6, 2**31, 2**53 + 1, 2**63, 10**30, 10**400, -(10**400), True, False),
    *(0.5, 1.0, -0.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan),
)
# Values as they are written, whether they parse or not.
DEEP = (*("[" * n + "]" * n for n in (200, 900, 20_000)), '{"a":' * 5000)
IN_JSON = (
    *DEEP,
    *("1e999", "NaN", "-Infinity", "tru", "'a'", '"a', "01", '"\\x"', "", "1 2", "//"),
    *("9" * 5000, '"\\ud800"', '"\\u0000"', '{"a": 1, "a": 2}'),
)
_LAUGHS = ", ".join(f"&a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))
IN_YAML = (
    *DEEP,
    *("*a", "&a [*a]", "&a {b: *a}", f"[&a0 [x, x], {_LAUGHS}]", "<<", "@a", "%a", "\t"),
    *("!!python/object/apply:os.system [touch owned]", "!!python/name:os.system", "!x y"),
    *("!!int x", "!!int ''", "!!bool maybe", "!!timestamp x", "!!float x", "!!binary x"),
    *("!!set {a, b}", "!!omap [a]", "!!null x", "!!str 3", "!!map 3", "!!int 3"),
    *("2001-99-99", "2001-01-01", "1:99:99", "0o7", "1_000", "on", "~", ".", "- a"),
    *(".nan", ".inf", "-.inf", "1e400", "0x" + "f" * 5000, "9" * 5000, '"a\\nb"'),
    *("{? [a] : b}", "{1: 2}", "{<<: 3}", "{a: 1, a: 2}", "{null: 1}", "{on: 1}"),
    *('"\\U00110000"', '"\\ud800"', '"\\0"', '"\\e"'),
)
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=12), st.text("./~-_ \n\0@a1", max_size=8)
)
numbers = st.sampled_from(NUMBERS)
plain = st.one_of(texts, numbers, st.sampled_from([None, [], {}, [[]], {"": ""}, [1, "a", None]]))


@st.composite
def mostly(draw: Callable, usual: st.SearchStrategy, odd: st.SearchStrategy = plain) -> Any:
    """From the first, at times from the second."""
    return draw(odd if draw(st.integers(0, 5)) == 0 else usual)


def some(*values: Any) -> st.SearchStrategy:
    return st.sampled_from(values)


# A value in JSON, or where a list or mapping begins; and its key.
_STRING = r'"(?:[^"\\]|\\.)*"'
_VALUE = re.compile(rf'({_STRING}\s*:\s*)?([\[{{]|{_STRING}|[^\s\[\]{{}},:"]+)')


def _changes(value: str) -> list[str]:
    """What is like a value and is not it."""
    if value[0] == '"':
        inner = value[1:-1]
        like = [f'"{inner} more"', f'"{inner[1:]}"', f'"{inner.upper()}"', f'"{inner}\\n"']
    else:
        like = [f"{value}1", f"-{value}", f"{value}.5", f'"{value}"']
    return [*like, f"[{value}]"] if value[0] not in "[{" else [f"[{value}]", "[]", "{}"]


@st.composite
def edited(draw: Callable, texts_of_json: Sequence[str], raws: Sequence[str]) -> str:
    """One of the texts after one to three edits; few of them leave it as it should be."""
    text = draw(some(*texts_of_json))
    odd = mostly(plain.map(json.dumps), some(*raws))
    names = st.one_of(texts.map(json.dumps), some(*raws))
    for _ in range(draw(some(1, 1, 1, 2, 3))):
        places = list(_VALUE.finditer(text))
        if not places:
            break
        place = places[draw(st.integers(0, len(places) - 1))]
        start, end = place.span(2)
        with contextlib.suppress(ValueError, RecursionError):  # after an edit it may not parse
            _, end = json.JSONDecoder().raw_decode(text, start)
        key, value = place[1] or "", text[start:end]
        edit = draw(some(*["change"] * 5, *["replace"] * 2, *(["key"] * 3 if key else []), "drop"))
        if edit == "change":
            twice = [] if key else [f"{value}, {value}"]
            new = key + draw(some(*_changes(value), *twice))
        elif edit == "replace":
            new = key + draw(odd)
        elif edit == "drop":
            new = ""
            end += len(re.match(r"[\s,]*", text[end : end + 9])[0])
        else:  # renamed, there twice, or one more
            name = draw(st.one_of(names, st.just(f'{key[:-3]}z"')))
            new = draw(some(f"{name}: {value}", f"{key}{value}, {key}{draw(odd)}"))
        text = text[: place.start()] + new + text[end:]
    return text


@st.composite
def bruised(draw: Callable, sound: Sequence[str]) -> bytes:
    """One of the texts with an accident to its bytes or lines."""
    text = draw(some(*sound))
    lines = text.splitlines(keepends=True) or [""]
    i = draw(st.integers(0, len(lines) - 1))
    line = draw(some([], [lines[i]] * 2, ["  ", lines[i]], ["#" * 200_000, "\n", lines[i]]))
    at = draw(st.one_of(some(0, len(text)), st.integers(0, len(text))))
    before, after = utf_8(text[:at]), utf_8(text[at:])
    with_part = before + draw(some(b"\xff", *map(utf_8, HOSTILE))) + after
    other_lines = utf_8("".join([*lines[:i], *line, *lines[i + 1 :]]))
    encoded = some(text.encode("utf-16"), utf_8(text.replace("\n", "\r\n")), utf_8(text))
    return draw(st.one_of(some(with_part, other_lines, before), encoded))


def files(contents: Sequence[Any], raws: Sequence[str], *sound: str) -> st.SearchStrategy:
    """Contents of a file: an edited one as JSON (which is YAML too), or one with an accident."""
    trees = edited(list(map(json.dumps, contents)), raws)
    accidents = bruised(sound or list(map(json.dumps, contents)))
    return mostly(trees.map(utf_8), st.one_of(accidents, trees.flatmap(lambda t: bruised([t]))))


def utf_8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- chapters, parameters, models' names ----------------------------------------------------------

CHAPTERS = {paper: find_chapter(ROOT, paper) for paper in list_papers(ROOT)}
CHAPTERS[TOY] = find_chapter(HERE, TOY)
# copying-mamba reads its whole grid of trainings, which takes a while, so it is one of many here.
_PAPERS = [*[paper for paper in CHAPTERS if paper != cells.PAPER] * 3, cells.PAPER]
RECORDS = {
    f"{path.parts[-3]}/{path.parts[-2]}": path.read_text()
    for path in sorted(ROOT.glob("results/*/*/record.json"))
}
_SOUND = RECORDS[f"{IOI}/tiny"]
_RECORD = json.loads(_SOUND)


def source(paper: str, suffix: str) -> Path:
    """A chapter's file, as the project or the tests have it."""
    name = f"{paper}.ipynb" if suffix == "ipynb" else f"{suffix}.yaml"
    return chapter_folder(HERE if paper == TOY else ROOT, paper) / name


def _settings(paper: str) -> st.SearchStrategy:
    known = some(*CHAPTERS[paper].parameters)
    values = st.one_of(
        some("3", "0.5", "true", "[1, 2]", "main", "none", ""),
        numbers.map(lambda number: str(number).lower()),
    )
    return st.tuples(
        st.just(paper),
        mostly(some("smoke", "laptop", "paper"), some("smoke\n", "", "big")),
        st.dictionaries(mostly(known, texts), mostly(values, texts), max_size=3),
    )


def recordable(**values: Any) -> dict[str, Any]:
    """A record with these values; what a run is given must not be refused when it ends."""
    record = _RECORD | values
    record["seal"] = seal(record)
    whole(check_record, record, "record")
    return record


def recordable_run(planned: Run) -> None:
    seed = planned.parameters["seed"]
    need(seed >= 0, "a generator takes no negative seed")
    recordable(parameters=dict(planned.given), seed=seed)


def read_settings(case: tuple, folder: Path) -> None:
    """A run that is planned can be recorded: none is refused after an hour."""
    paper, profile, texts_by_name = case
    planned = plan(CHAPTERS[paper], "tiny", profile, texts_by_name, out=folder / "out")
    inside(planned.folder, folder / "out")
    for name, value in planned.parameters.items():
        whole(CHAPTERS[paper].parameters[name].check, value, "planned")
    recordable_run(planned)


_NAMES = (*KNOWN, "gpt2", "org/Name-1.5_b", "EleutherAI/pythia-70m", "./model", "~/model", "mine")
model_names = st.one_of(
    texts,
    some(*_NAMES),
    st.builds("{}{}".format, some(*_NAMES), some(*_NAMES, *HOSTILE)),
    st.text("abZ09._-/~@ \n", min_size=1, max_size=30),
).filter(lambda name: name not in EMBEDDED)  # these would be unpacked


def read_model_name(name: str, folder: Path) -> None:
    planned = plan(CHAPTERS[TOY], name, "smoke", {}, out=folder / "out")
    is_there = planned.folder.parent == folder / "out" / TOY and len(planned.folder.name) <= 200
    need(is_there, f"the folder is {planned.folder}")
    planned.folder.mkdir(parents=True)
    recordable(model=_RECORD["model"] | {"name": planned.model})
    with mock.patch.object(huggingface_hub.HfApi, "model_info", _no_hub):
        prepare_model(planned.model)


def _no_hub(self: Any, name: str, **options: Any) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    raise ConnectionError("there is no network\nhere")


def chapter_with(folder: Path, paper: str, **changed: bytes | str) -> Path:
    """A project with the one paper, some of whose files are changed."""
    for suffix in ("claims", "profiles", "ipynb"):
        path = source(paper, suffix)
        place = chapter_folder(folder / "project", paper) / path.name
        put(place, changed.get(suffix, path.read_bytes()))
    return folder / "project"


def chapter_files(suffix: str) -> st.SearchStrategy:
    """(paper, content of its file)."""

    def of(paper: str) -> st.SearchStrategy:
        text = source(paper, suffix).read_text()
        content = read_yaml(text, suffix, texts_only=suffix == "claims")
        return st.tuples(st.just(paper), files([content], IN_YAML, text))

    return some(*_PAPERS).flatmap(of)


_NOTEBOOK = json.loads(source(TOY, "ipynb").read_text())


def record_of(claims: Claims) -> dict[str, Any]:
    """The record that a run would leave with these claims, checked."""
    content = claims.bundle({"name": "tiny", "sha256": None})[MIME]
    keys = ("paper", "title", "arxiv", "model", "measurements", "heads", "changes")
    entries = [claim | {"scope": "transfer"} for claim in content["claims"]]
    record = recordable(**{key: content[key] for key in keys}, claims=entries)
    verdict_table(record["claims"])._repr_html_()
    return record


def read_claims(case: tuple[str, bytes], folder: Path) -> None:
    paper, content = case
    chapter = find_chapter(chapter_with(folder, paper, claims=content), paper)
    chapter.claims.table()._repr_html_()
    chapter.claims.history()._repr_html_()
    record_of(chapter.claims)


def read_profiles(case: tuple[str, bytes], folder: Path) -> None:
    paper, content = case
    project = chapter_with(folder, paper, profiles=content)
    for kept in ("adapters", "checkpoints"):  # trainings that are stored
        (chapter_folder(project, paper) / kept).symlink_to(chapter_folder(ROOT, paper) / kept)
    chapter = find_chapter(project, paper)
    for name, profile in chapter.profiles.items():
        chapter.parameters_hash(name)
        limit = profile.time_limit_s
        need(0 < limit < math.inf, f"a time limit of {limit}")
        for model in profile.models:
            with contextlib.suppress(NotStored):  # an adapter that nobody has trained
                recordable_run(plan(chapter, model, name, {}, out=folder / "out"))


def read_notebook(content: bytes, folder: Path) -> None:
    chapter = find_chapter(chapter_with(folder, TOY, ipynb=content), TOY)
    notebook_hash(chapter.notebook)
    library_hash(chapter.notebook)
    plan(chapter, "tiny", "smoke", {}, out=folder / "out")


# --- measured numbers and rules -------------------------------------------------------------------

expressions = st.recursive(
    some("value", "low", "high", "n", "null_q95", "x", "0", "1e308", "9" * 320, "true"),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, some("+", "-", "*", "/", "<", "=="), inner),
        st.builds("{}({}, {})".format, some("min", "max", "abs"), inner, inner),
        st.builds("{}({})".format, some("min", "max", "abs", "not "), inner),
        st.builds("{} and {} or {}".format, inner, inner, inner),
    ),
    max_leaves=6,
)
rules = mostly(
    some("value > 0", "low > null_q95", "value < 0 or n < 5", "false"),
    st.one_of(expressions, expressions.map("{} > 0".format), st.just("-" * 700 + "value > 0")),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
given_numbers = st.fixed_dictionaries(
    {
        "value": mostly(st.one_of(finite, numbers)),
        "interval": mostly(st.tuples(finite, finite).map(sorted), st.tuples(numbers, numbers)),
        "n": mostly(st.integers(0, 100), st.one_of(numbers, plain)),
        "null": mostly(
            st.fixed_dictionaries({"q95": numbers}),
            st.dictionaries(mostly(some("q95", "description"), texts), numbers, max_size=2),
        ),
    },
    optional={"unit": texts, "note": texts, "x": mostly(numbers)},
)
reported = st.tuples(mostly(st.just("share"), texts), mostly(finite))


def read_numbers(case: tuple, folder: Path) -> None:
    """A claim has all of its result or none."""
    rules_given, numbers_given, more = case
    content = read_yaml(source(TOY, "claims").read_text(), "claims", texts_only=True)
    content["claims"][0] |= {"null": "by chance"} | rules_given
    claims = Claims.load(put(folder / "toy/claims.yaml", json.dumps(content)))
    try:
        claims.measure("1.1", **numbers_given)
        claims.report(*more)
    finally:
        done = record_of(claims)
        is_decided = claims.outcome("1.1") in ("holds", "fails")
        need(not is_decided or done["claims"][0]["measured"], "an outcome and no number")


# --- records --------------------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """As whoever altered a record would seal it again; else the seal would refuse them all."""
    try:
        record = json.loads(content)
        return json.dumps(record | {"seal": seal(record)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def read_a_record(content: bytes, folder: Path) -> None:
    """What is read can be written, compared, and shown on every page."""
    content = sealed(content) if len(content) % 4 else content
    path = put(folder / "runs" / IOI / "tiny/record.json", content)
    (run_,) = find_runs(folder / "runs", None)
    record = run_.record
    record_values(record)
    whole(write_record, folder / "again.json", record)
    is_same = whole(read_record, folder / "again.json") == record
    need(is_same, "written and read again it is another record")
    sizing.reference(record)
    old = records.certified_path(folder, record)
    inside(old, folder)
    put(old, _SOUND)
    records.compare(folder, path.parent)
    for paper in (IOI, KNOB):
        with contextlib.suppress(UsageError):  # such as an unknown profile
            changed_since(record, CHAPTERS[paper])
    tables.scorecard([run_])
    tables.transfer([run_])
    claims = CHAPTERS[IOI].claims
    pages.landing_page([run_], claims, "")
    switch = pages.model_switch(run_.key, [run_], [])
    pages.chapter_page(ROOT, run_, switch, claims.model, {})
    if record["heads"]:
        atlas.page("tiny", [record])


def read_run_names(names: list[str], folder: Path) -> None:
    runs = folder / "runs"
    for place in (f"runs/{IOI}/tiny", f"{IOI}/tiny", "runs/x/tiny", "x"):
        put(folder / place / "record.json", _SOUND)
    for found in find_runs(runs, names, folder / "results"):
        is_there = found.folder == runs / found.paper / found.model
        need(is_there, f"a run in {found.folder}")
        inside(folder / "page" / f"{found.key}.json", folder / "page" / found.paper)
    for name in names:
        records.find_run(name, runs)


# --- sweeps ---------------------------------------------------------------------------------------

SWEEPS = """
name: three-sizes
papers: [factual-recall, successor-heads]
models: [EleutherAI/pythia-70m, tiny]
seeds: [0, 1, 2]
profile: laptop
parameters: {revision: ["", main]}
device: cuda
threads: 4
memory_gb: 16
---
{name: seeds, papers: [ioi-circuit-reuse], models: [tiny], seeds: [0, 1]}
---
name: many
papers: [ioi-circuit-reuse]
models: [tiny, gpt2]
parameters: {n_prompts: [50, 100], n_deep: 8, prompts_file: ""}
"""


def read_a_sweep(content: bytes, folder: Path) -> None:
    path = put(folder / "sweep.yaml", content)
    planned = read_sweep(ROOT, path)
    top = ROOT / "build" / "sweeps" / planned.name
    need(planned.folder == top and top.name == planned.name, f"the folder is {planned.folder}")
    for name, job in planned.jobs.items():
        inside(planned.stamp(name), top / "stamps")
        inside(job.run.folder, top / job.variant)
        is_there = job.run.folder.parents[2] == top and name.isprintable()
        need(is_there, f"a job {name!r} in {job.run.folder}")
        recordable_run(job.run)
    of_a_job = planned.threads, planned.memory_mb
    need({*map(type, of_a_job)} == {int}, f"threads and memory {of_a_job}")
    command(ROOT, path, planned, "slurm", 2, [])


# --- a reader's own data --------------------------------------------------------------------------

_PARK = "When Mary and John arrived at the park, {} handed the lemon to"
_PAIR = dict(clean=_PARK.format("John"), corrupted=_PARK.format("Mary"))
_PAIR |= dict(answer=" Mary", foil=" John")
_LONG_PAIR = _PAIR | {key: f"Then {_PAIR[key]}" for key in ("clean", "corrupted")}
_SHORT_PAIR = dict(clean="Then Mary", corrupted="Then John", answer=" and", foil=" to")
_BYTES = dict(clean="1 + 1 = ", corrupted="1 + 2 = ", answer="2", foil="3")
_COLORED = "Q: On the desk, there is a red {}, a blue {}, and a black {}. What color is the {}?\nA:"
_TWO_SHOTS = f"{_COLORED.format('pen', 'cup', 'mug', 'cup')} Blue\n"
_ADA = dict(subject="Ada", prompt="The job of {subject} is", answer="poet", foil="king")
_BO = dict(subject="Bo", prompt="Bo is a", answer="cook", foil="spy", relation="job")
_CAT = dict(context="The cat of Ada is green.", question="What colour is the cat of Ada?")
_CITY = dict(context="Bo lives in Rome.", question="Where does Bo live?", subject="Bo")
OWN = {
    "prompts_file": [[_PAIR, _SHORT_PAIR, _LONG_PAIR], [_SHORT_PAIR], [_BYTES], [_BYTES]],
    "colored_objects_file": [
        [
            [_COLORED.format("pen", "cup", "mug", "pen"), " Red"],
            [_COLORED.format("cup", "pen", "mug", "cup"), "red"],
            [_TWO_SHOTS + _COLORED.format("pen", "cup", "mug", "mug"), "black"],
        ]
    ],
    "facts_file": [[_ADA, _BO]],
    "conflicts_file": [
        [
            _CAT | dict(prior_answer="black", context_answer="green"),
            _CITY | dict(prior_answer="Oslo", context_answer="Rome", opening="Bo lives in"),
        ]
    ],
}


def as_csv(rows: list) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(row.values() if isinstance(row, dict) else row)
    return out.getvalue()


def own_files(kind: str) -> st.SearchStrategy:
    """((the file's name, its content), is it read with a tokenizer that knows words only?)."""
    sound = [json.dumps(rows) for rows in OWN[kind]]
    lines = ["\n".join(map(json.dumps, rows)) for rows in OWN[kind]]
    contents = {
        "mine.json": files(OWN[kind], IN_JSON),
        "mine.jsonl": st.one_of(edited(lines, IN_JSON).map(utf_8), bruised(lines)),
        "mine.csv": bruised(list(map(as_csv, OWN[kind]))),
        "mine.txt": bruised(sound),
        "MINE.JSON": bruised(sound),
    }
    usual, *odd = (st.tuples(st.just(name), content) for name, content in contents.items())
    return st.tuples(mostly(usual, st.one_of(*odd)), mostly(st.just(True), st.just(False)))


@cache
def tokenizers() -> tuple[Any, Any]:
    """One that knows words only, and one that knows every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    return word_tokenizer(), transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token=alphabet[0]
    )


def read_facts(tokenizer: Any, path: Path) -> None:
    found = facts.readable(tokenizer, facts.facts_from_file(path), at_least=1)
    if conflicts := facts.draw_foils(tokenizer, found, 1, 0):
        facts.conflict_pairs(tokenizer, conflicts, facts.OWN_TEMPLATE)


READ_OWN = {
    "prompts_file": prompts.pairs_from_file,
    "colored_objects_file": prompts.colored_objects_from_file,
    "facts_file": read_facts,
    "conflicts_file": lambda _, path: contexts.paragraph_cases(contexts.cases_from_file(path)),
}


def read_own(kind: str, case: tuple, folder: Path) -> None:
    """Read as the runner does before a run, and made into prompts as the chapter does."""
    (name, content), words_only = case
    READ_OWN[kind](tokenizers()[0 if words_only else 1], put(folder / name, content))


# --- new chapters ---------------------------------------------------------------------------------

_TOC = (ROOT / "_toc.yml").read_text()
titles = mostly(
    st.one_of(
        some("A Sixth Paper", "null", "yes", "3.14", "Attention, again", "It's all", "[Draft]"),
        st.builds("{} {}".format, texts, texts),
        st.text(st.characters(codec="utf-8"), min_size=3, max_size=20),
    ),
    texts,
)
slugs = mostly(
    st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,2}", fullmatch=True),
    st.one_of(some("null", "true", "1", "1e3", "claims", "toy", "sixth-paper\n", "x" * 60), texts),
)
numbers_of_papers = mostly(
    some("2601.00001", "2601.0001"), st.one_of(some("2601.00001\n", "٢٣١٠.٠٨٧٤٤"), texts)
)


def read_new(case: tuple, folder: Path) -> None:
    """A new chapter is whole, or nothing is written."""
    slug, title, number, toc = case
    project = chapter_with(folder, TOY)
    put(project / "tests/test_claims.py", "mine")
    put(project / "_toc.yml", toc)
    before = tree(project)
    try:
        paths = new_paper(project, slug, title, number)
    except BaseException:
        need(tree(project) == before, "something was written, and then it failed")
        raise
    chapter = whole(find_chapter, project, slug)
    about = chapter.claims.title, chapter.claims.arxiv
    need(about == (title, number), f"title and number have become {about}")
    for path in paths:
        inside(path, project)
    ast.parse(paths[3].read_text())
    heading = "".join(json.loads(chapter.notebook)["cells"][0]["source"]).partition("\n")[0]
    is_shown = heading == f"# {title}" and title == title.strip()  # the book refuses another
    need(is_shown, f"the page begins with {heading!r}")
    library_hash(chapter.notebook)
    contents = str(yaml.safe_load((project / "_toc.yml").read_text()))
    need(f"chapters/{slug}/index" in contents, "it is not in the table of contents")
    after = tree(project)
    is_kept = all(after[path] == old for path, old in before.items() if "_toc" not in path)
    need(is_kept, "another file was changed")


# --- whole commands -------------------------------------------------------------------------------

_WORDS = {
    "--model": ["tiny", "gpt2", "org/name", "./notebooks"],
    "--profile": ["smoke", "laptop", "paper", "local", "slurm"],
    "-p": ["mode=well", "n_prompts=3", "seed=-1", "seed=1e3", "prompts_file=_toc.yml"],
    "--seed": ["0", "7", "-1", "99999999999999999999"],
    "--revision": ["main", ""],
    "--device": ["cpu", "cuda", "auto"],
    "--out": ["out", "notebooks/toy/toy.ipynb", "../out", "_toc.yml/out", "~nobody-here/x"],
    "--time-limit": ["60", "0", "-1", "nan", "1e400"],
    "--refusal": ["refused", "notebooks", "_toc.yml/refused"],
    "--jobs": ["2", "0", "1000000"],
    "--title": ["A Seventh Paper"],
    "--arxiv": ["2601.00001"],
    "--format": ["weight"],
    "--cell": ["copy/rope-0.003-1", "copy/rope-0.003", "copy/rope-9-1"],
    "--cores": ["1", "0"],
    "--dry-run": [],
    "--modl": ["tiny"],
    "--help": [],
}
_LINES = (
    "list",
    "run toy",
    "sweep sweep.yaml",
    f"certify {IOI}/tiny",
    f"verify {IOI}/tiny",
    "new sixth-paper --title Sixth --arxiv 2601.00001",
    f"train {KNOB}",
    "walk",
)


@st.composite
def command_lines(draw: Callable) -> list[str]:
    line = draw(mostly(some(*_LINES[1:6]), some(*_LINES))).split()
    command = typer.main.get_command(cli.app).commands.get(line[0])
    known = {flag for param in command.params for flag in param.opts} if command else set()
    flags = sorted({"--help", *known & {*_WORDS}})
    if draw(st.integers(0, 3)) == 0:
        line[draw(st.integers(0, len(line) - 1))] = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        flag = draw(mostly(some(*flags), some(*_WORDS, "--", "-h")))
        values = _WORDS.get(flag, [])
        odd = texts if flag != "--refusal" else some(*values)  # which is written, wherever it is
        line += [flag, draw(mostly(some(*values), odd))] if values else [flag]
    return [word.replace("\0", "") for word in line]  # no command line has one


def _not_run(*arguments: Any, **options: Any) -> None:
    raise RunFailed("nothing runs here")


NOTHING_RUNS: dict[str, Callable] = {
    "bookkit.cli.prepare": lambda runs, skip_missing: runs,
    "bookkit.cli.execute": _not_run,
    "bookkit.cli.run_sweep": lambda *_: 0,
    "bookkit.cli.to_run": lambda *_: {},
    "replib.chapters.copying_mamba.stored.missing": lambda root: [],
    "replib.chapters.context_knob.training.train_adapter": lambda *_: Path(),
    "replib.chapters.copying_mamba.training.train_cell": lambda *_: Path(),
}


def read_command_line(line: list[str], folder: Path) -> None:
    """The exit code says how it ended; a refusal is the only line on standard error."""
    project = chapter_with(folder, TOY)
    chapter_with(folder, IOI)
    put(project / "_toc.yml", _TOC)
    put(project / "sweep.yaml", "{name: trial, papers: [toy], models: [tiny], profile: smoke}")
    for place in ("build/runs", "results"):
        put(project / place / IOI / "tiny/record.json", _SOUND)
    shutil.copytree(ROOT / "workflow/profiles", project / "workflow/profiles")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for name, stand_in in NOTHING_RUNS.items():
            stack.enter_context(mock.patch(name, stand_in))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(contextlib.chdir(project))
        code = cli.main(line)
    out.getvalue().encode()  # a terminal could not show half a character
    said = err.getvalue()
    if code == 2:
        is_line = said.startswith("replib: ") and said.count("\n") == 1 and not out.getvalue()
        need(is_line, f"said {said!r} {out.getvalue()!r}")
        raise UsageError(said.removesuffix("\n"))
    is_told = code == 0 or (code == 1 and ("nothing runs here" in said or "verify" in line))
    need(is_told, f"ended with {code} and said {said!r}")


# --- a folder with a model ------------------------------------------------------------------------

# More than a few layers would be built one by one; a size that fits no memory is refused at once.
_SIZES = (0, 1, 3, -1, 0.5, math.nan, True, 2**62, 10**400)


@cache
def model_folder(arch: str) -> dict[str, bytes]:
    """The files of a small random model, as a user would have saved it."""
    with tempfile.TemporaryDirectory() as name, quiet():
        model, tokenizer = tiny_parts(arch, 0)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEXES = [
    {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": _WEIGHTS}},
    {"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}},
]


@st.composite
def model_folders(draw: Callable) -> tuple[str, dict[str, bytes]]:
    """(architecture, the files that are changed)."""
    arch = draw(some("gpt2", "llama"))
    name = draw(some(*["config.json"] * 4, *[_WEIGHTS] * 2, *model_folder(arch), _INDEX))
    raw = model_folder(arch).get(name, b"")
    if name == _INDEX:
        return arch, {name: draw(files(_INDEXES, IN_JSON))}
    if name == _WEIGHTS:
        (length,) = struct.unpack("<Q", raw[:8])
        header = utf_8(draw(edited([raw[8 : 8 + length].decode()], IN_JSON)))
        size = draw(mostly(st.just(len(header)), some(0, 1, 2**40, 2**64 - 1)))
        cut = draw(mostly(st.just(None), some(0, 8, 1000, -1)))
        return arch, {name: (struct.pack("<Q", size) + header + raw[8 + length :])[:cut]}
    content = json.loads(raw)
    if name != "config.json":
        return arch, {name: draw(files([content], IN_JSON))}
    if draw(st.integers(0, 3)) == 0:
        return arch, {name: draw(bruised([raw.decode()]))}
    key = draw(some(*content))
    sizes = [size for size in _SIZES if "layer" not in key or size < 9]
    value = draw(st.one_of(some(*sizes), some(None, [], {}, "4", content[key]), texts))
    foreign = {"auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    more = draw(mostly(st.just({}), st.just(foreign)))
    return arch, {name: json.dumps(content | more | {key: value}).encode()}


def read_model_folder(case: tuple, folder: Path) -> None:
    arch, changed = case
    for name, content in (model_folder(arch) | changed).items():
        put(folder / "mine" / name, content)
    put(folder / "mine/mine.py", f"open({str(ROOT / 'owned')!r}, 'w')")
    name = absolute_model("./mine")
    prepare_model(name)
    size = sizing.folder_size(folder / "mine")
    sizing.estimate(size, "float32", "cpu", 8e9, None)
    need(size.d_model * size.n_params > 0, f"a size of {size}")
    load_model(name)


# --- stored trainings -----------------------------------------------------------------------------

_CELL = cell_of(
    next(
        f"{path.parent.name}/{path.stem}"
        for path in sorted(cells.folder(ROOT).glob("copy/*.json"))
        if cell_of(f"copy/{path.stem}").is_reported
    )
)
_CARD = json.loads(cells.card_path(ROOT, _CELL).read_text())
_ADAPTER = min(chapter_folder(ROOT, KNOB).glob("adapters/*/*/training.json")).parent
_ADAPTER_CARD = json.loads((_ADAPTER / adapters.CARD).read_text())
_ADAPTER_CONFIG = json.loads((_ADAPTER / adapters.CONFIG).read_text())
_OLD = {"sha256": hashlib.sha256(b"weights").hexdigest()}
CARDS = {"grid": _CARD | _OLD, "card": _ADAPTER_CARD | _OLD, "config": _ADAPTER_CONFIG}
cards = st.one_of(
    *(st.tuples(st.just(kind), files([card], IN_JSON)) for kind, card in CARDS.items())
)


def read_card(case: tuple, folder: Path) -> None:
    kind, content = case
    if kind == "grid":
        put(cells.card_path(folder, _CELL), content)
        put(cells.weights_path(folder, _CELL), b"weights")
        cells.is_stale(folder, cells.read_card(folder, _CELL))
        cells.selection(folder, _CELL.study, _CELL.architecture)
        return
    about = ("tiny", "weight", 1)
    place = adapters.adapter_folder(folder, *about)
    card, config = json.dumps(_ADAPTER_CARD | _OLD), json.dumps(_ADAPTER_CONFIG)
    card, config = (card, content) if kind == "config" else (content, config)
    put(place / adapters.WEIGHTS, b"weights")
    put(place / adapters.CARD, card)
    put(place / adapters.CONFIG, config)
    adapters.check_adapter(folder, about[0], None, *about[1:])


_RUN_NAMES = st.one_of(
    some(f"{IOI}/tiny", "x/tiny", f"../{IOI}/tiny", f"{IOI}/../x/tiny", f"{IOI}/../../x"),
    st.builds("{}/{}".format, some(IOI, "..", ".", "results"), texts),
)
_run_names = st.lists(mostly(_RUN_NAMES, texts), min_size=1, max_size=3)
_rules = st.fixed_dictionaries(dict.fromkeys(("gate", "holds_if", "fails_if"), rules))
_numbers = st.tuples(_rules, given_numbers, reported)
_notebooks = files([_NOTEBOOK], IN_JSON)
_records = files([json.loads(RECORDS[key]) for key in RECORDS if "ioi" in key], IN_JSON, _SOUND)
_sweeps = files(list(yaml.safe_load_all(SWEEPS)), IN_YAML, *SWEEPS.split("---\n"))
_tocs = st.one_of(st.just(_TOC), bruised([_TOC]))
TARGETS = (
    Target("parameters", some(*_PAPERS).flatmap(_settings), read_settings, 30),
    Target("names of models", model_names, read_model_name, 25),
    Target("claims files", chapter_files("claims"), read_claims, 30),
    Target("numbers of a claim", _numbers, read_numbers, 20),
    Target("profiles files", chapter_files("profiles"), read_profiles, 12),
    Target("notebooks", _notebooks, read_notebook, 12),
    Target("records", _records, read_a_record, 30),
    Target("names of runs", _run_names, read_run_names, 8),
    Target("sweep files", _sweeps, read_a_sweep, 25),
    *(Target(f"own data, {kind}", own_files(kind), partial(read_own, kind), 8) for kind in OWN),
    Target("new chapters", st.tuples(slugs, titles, numbers_of_papers, _tocs), read_new, 15),
    Target("command lines", command_lines(), read_command_line, 25),
    Target("folders with a model", st.deferred(model_folders), read_model_folder, 10),
    Target("cards of stored trainings", cards, read_card, 8),
)
COLUMNS = ("input", "cases", "accepted", "refused in one line", "other")


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no fault; 1: some, each with its simplest case, and no table is written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    started, rows, faults = time.monotonic(), [], []
    for target in TARGETS:
        try:
            counts = run(target, share(target, options.cases), options.seed)
            rows.append([target.name, counts.total(), counts["accepted"], counts["refused"], 0])
        except Exception as error:
            faults.append(target.name)
            traceback.print_exception(error)
    print(show(COLUMNS, rows))
    print(*(f"fuzz: {name}: a fault, see above" for name in faults), sep="\n")
    if options.out is not None and not faults:
        what = "Hostile input, made from the project's own files: how each case ended."
        more = {"cases": sum(row[1] for row in rows)}
        write_table(options.out, what, COLUMNS, rows, time.monotonic() - started, **more)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
