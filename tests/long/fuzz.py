"""Hostile input, made from the project's own files: `make fuzz`, and a part of it in the tests.

    python tests/long/fuzz.py --cases 5000 --seed 0 --out results/trust/fuzz.json

A target reads one kind of input with the functions that the command line calls. A case is accepted,
or refused with a `UsageError` of one short line. Anything else is a fault: another exception, a
hang, a line that a terminal would not show as it is, a file outside the folder that was given, a
process or a connection, or something that was accepted and is not whole.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import matplotlib.pyplot
import peft
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from trust import HERE, ROOT, show, write_table

from bookkit import cli, records
from bookkit.book import atlas, pages, runs, tables
from bookkit.project import chapter_folder
from bookkit.run import resources as sizing
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import RunFailed
from bookkit.run.plan import Run, absolute_model, changed_since, plan
from bookkit.sweep import command, read_sweep
from replib.chapters.context_knob import contexts
from replib.chapters.context_knob import stored as adapters
from replib.chapters.copying_mamba import stored as cells
from replib.chapters.factual_recall import facts
from replib.chapters.stored import NotStored
from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.claims.tables import verdict_table
from replib.errors import UsageError
from replib.files import read_yaml
from replib.interventions import head_edits
from replib.interventions.generation import continuations, text_loss
from replib.interventions.network import Network
from replib.models.bridge import bridge_for
from replib.models.device import find_dtype
from replib.models.load import load_model, prepare_model
from replib.models.sources import EMBEDDED, KNOWN, Place
from replib.models.tiny import tiny_parts
from replib.prompts import files as prompts
from replib.prompts.ioi import ioi_pairs
from replib.prompts.tokens import check_text
from replib.prompts.vocabulary import word_tokenizer

SECONDS = 20  # a case that takes longer hangs
LONGEST = 1200  # characters of a refusal
TOY, IOI, KNOB = "toy", "ioi-circuit-reuse", "context-knob"


class Hang(BaseException):
    """A case took too long; no Exception, so that nobody catches it on the way."""


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
        # What a link points to stays as it is.
        for path in values[1:2] if event in ("os.link", "os.symlink") else values[:2]:
            if isinstance(path, str | bytes | os.PathLike):  # or a mode, which is no path outside
                follow = os.path.realpath if event == "open" else os.path.abspath
                where = Path(follow(os.fsdecode(path)))
                if not where.is_relative_to(_allowed) and where != Path(os.devnull):
                    _outside.append(f"{event} {where}")


def judge(read: Callable[[Any, Path], None], case: Any, folder: Path) -> str:
    """accepted or refused; anything else is raised, also what was done elsewhere."""
    global _allowed

    def stop(number: int, frame: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    _outside.clear()
    _allowed = folder
    try:
        with contextlib.chdir(folder):
            read(case, folder)
        return "accepted"
    except UsageError as error:
        text = str(error)
        is_line = text.strip() and len(text) <= LONGEST and text.isprintable()
        assert is_line, f"a refusal that is no short line: {text!r}"
        return "refused"
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # a library in Rust panics with one that is no Exception
        raise AssertionError(repr(error)) from error
    finally:
        _allowed = None
        signal.alarm(0)
        assert not _outside, f"outside the folder that was given: {_outside[:1]}"


def run(name: str, n_cases: int, seed: int) -> Counter:
    """Judge up to `n_cases` cases of a target, the same ones for the same seed; how they ended.
    What hypothesis raises has the simplest case of each fault."""
    (cases, read), counts = TARGETS[name], Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=n_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def each(case: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as place:
            counts[judge(read, case, Path(place).resolve())] += 1

    with (
        mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        warnings.catch_warnings(action="ignore"),
    ):
        _warm_up()
        each()
    return counts


@cache
def _warm_up() -> None:
    """Import what the functions import on their way, and watch from now on."""
    import replib.chapters.context_knob.training
    import replib.chapters.copying_mamba.training  # noqa: F401

    logging.getLogger("replib").setLevel(logging.ERROR)
    model_folder(), adapter_files()  # written once, in a folder of their own
    matplotlib.get_configdir(), matplotlib.get_cachedir()  # makes the folders
    sys.dont_write_bytecode = True
    sys.addaudithook(_audit)  # for the life of the process


def whole(call: Callable, *arguments: Any) -> Any:
    """The call's result; what it refuses here was accepted before."""
    try:
        return call(*arguments)
    except UsageError as error:
        raise AssertionError(f"accepted before, now refused: {error}") from None


def inside(path: Path, folder: Path) -> None:
    assert Path(os.path.abspath(path)).is_relative_to(folder), f"{path} is outside"


def put(path: Path, content: bytes | str) -> Path:
    """Write a file, in place of a link as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- hostile parts --------------------------------------------------------------------------------

HOSTILE = (
    *("", " ", "\n", "a\nb", "tiny\n", "\0", "a\0b", "\x1b[31mred", "\x85", "\u2028", "\u202egnp"),
    *("\ud800", "\udcff", "\ufeff", "é" * 300, "x" * 300, "y" * 5000, "z" * 100_000, "\U0010ffff"),
    *("../up", "../../up", "/etc/passwd", "a/../../b", "..", ".", "/", "~", "~nobody-here/x", "="),
    *("-", "--", "-p", "--help", "null", "true", "1e999", "NaN", "-1", "1_000", "٣", "3.0", "["),
    *("*a", "!!python/object/apply:os.getcwd []", "a: b", "a #b", "- a", "{a", "'a", "9" * 5000),
    *("<script>alert(1)</script>", "{record}`x`", "${HOME}", "$(id)", "%s", "`", "[MEM]", ","),
)
NUMBERS = (0, 1, 2, 7, -1, 10**6, 2**31, 2**53 + 1, 2**63, 10**30, 10**400, -(10**400), True, False)
# Values as they are written, whether they parse or not.
DEEP = (*("[" * n + "]" * n for n in (200, 900, 20_000)), '{"a":' * 5000)
IN_JSON = (
    *(*DEEP, "1e999", "NaN", "-Infinity", "tru", "'a'", '"a', "01", '"\\x"', "", "1 2", "//"),
    *("9" * 5000, '"\\ud800"', '"\\u0000"', '{"a": 1, "a": 2}'),
)
_LAUGHS = ", ".join(f"&a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))
IN_YAML = (
    *(*DEEP, "*a", "&a [*a]", "&a {b: *a}", f"[&a0 [x, x], {_LAUGHS}]", "<<", "@a", "%a", "\t"),
    *("!!python/object/apply:os.system [touch owned]", "!!python/name:os.system", "!x y"),
    *("!!int x", "!!int ''", "!!bool maybe", "!!timestamp x", "!!float x", "!!binary x"),
    *("!!set {a, b}", "!!omap [a]", "!!null x", "!!str 3", "!!map 3", "2001-99-99", "1:99:99"),
    *(".nan", "-.inf", "1e400", "0x" + "f" * 5000, "9" * 5000, '"a\\nb"', "0o7", "on", "~", "- a"),
    *("{? [a] : b}", "{1: 2}", "{<<: 3}", "{a: 1, a: 2}", "{null: 1}", '"\\U00110000"', '"\\0"'),
)
some = st.sampled_from
texts = st.one_of(some(HOSTILE), st.text(max_size=12), st.text("./~-_ \n\0@a1", max_size=8))
numbers = st.one_of(some(NUMBERS), some([0.5, -0.0, 1e308, 5e-324]), st.floats())
plain = st.one_of(texts, numbers, some([None, [], {}, [[]], {"": ""}, [1, "a", None]]))


@st.composite
def mostly(draw: Callable, usual: st.SearchStrategy, odd: st.SearchStrategy = plain) -> Any:
    """From the first, at times from the second."""
    return draw(odd if draw(st.integers(0, 5)) == 0 else usual)


# A value in JSON, or where a list or mapping begins; and its key.
_STRING = r'"(?:[^"\\]|\\.)*"'
_VALUE = re.compile(rf'({_STRING}\s*:\s*)?([\[{{]|{_STRING}|[^\s\[\]{{}},:"]+)')


def _like(value: str) -> list[str]:
    """What is like a value in JSON and is not it."""
    if value[0] in "[{":
        return [f"[{value}]", "[]", "{}"]
    if value[0] != '"':
        return [f"[{value}]", f"{value}1", f"-{value}", f"{value}.5", f'"{value}"']
    more, less, line = f'{value[:-1]} more"', f'"{value[2:]}', f'{value[:-1]}\\n"'
    return [f"[{value}]", more, less, line, value.upper()]


@st.composite
def damaged(draw: Callable, sound: Sequence[str], raws: Sequence[str]) -> bytes:
    """One of the texts after one to three edits, few of which leave it as it should be: of a value
    in it, of a value's key, or of what follows a place; at times not in UTF-8."""
    text = draw(some(sound))
    odd = st.one_of(plain.map(json.dumps), some(raws))
    for _ in range(draw(some([1, 1, 1, 2, 3]))):
        edit = draw(some([*["like"] * 5, *["odd"] * 2, *["key"] * 3, "drop", "accident"]))
        places = list(_VALUE.finditer(text))
        if edit == "accident" or not places:
            start = draw(st.one_of(some([0, len(text)]), st.integers(0, len(text))))
            end = draw(some([start, len(text), f"{text}\n".index("\n", start)]))
            new = draw(st.one_of(some(["", text[start:end] * 2, "#" * 200_000 + "\n"]), texts))
        else:
            place = places[draw(st.integers(0, len(places) - 1))]
            key, (start, end) = place[1] or "", place.span(2)
            with contextlib.suppress(ValueError, RecursionError):  # after an edit it may not parse
                _, end = json.JSONDecoder().raw_decode(text, start)
            value, start = text[start:end], place.start()
            if edit == "like":
                new = key + draw(some([*_like(value), *([] if key else [f"{value}, {value}"])]))
            elif edit == "odd":
                new = key + draw(odd)
            elif edit == "key" and key:  # renamed, there twice, or one more
                name = draw(st.one_of(texts.map(json.dumps), some([*raws, f'{key[:-3]}z"'])))
                new = draw(some([f"{name}: {value}", f"{key}{value}, {key}{draw(odd)}"]))
            else:
                new, end = "", re.compile(r"[\s,]*").match(text, end).end()
        text = text[:start] + new + text[end:]
    raw = text.encode("utf-8", "surrogatepass")
    not_so = [raw + b"\xff", raw.replace(b"\n", b"\r\n"), text.encode("utf-16", "surrogatepass")]
    return draw(some([*[raw] * 20, *not_so]))


def damaged_file(name: str, text: str) -> st.SearchStrategy:
    """Of a file in JSON or YAML; YAML as it is or, mostly, as JSON, which is YAML too."""
    if not name.endswith(".yaml"):
        return damaged([text], IN_JSON)
    content = read_yaml(text, name, texts_only=name == "claims.yaml")
    return damaged([text, *[json.dumps(content)] * 4], IN_YAML)


# --- planned runs and sweeps ----------------------------------------------------------------------

PAPERS = (TOY, IOI, KNOB)
SOURCES = {paper: chapter_folder(ROOT, paper) for paper in (IOI, KNOB, cells.PAPER)}
SOURCES[TOY] = chapter_folder(HERE, TOY)
CHAPTERS = {paper: find_chapter(SOURCES[paper].parents[1], paper) for paper in PAPERS}
RECORDS = [path.read_text() for path in sorted(ROOT.glob(f"results/{IOI}/*/record.json"))]
_RECORD = json.loads(RECORDS[-1])


def recordable(**values: Any) -> None:
    """What a run is given must not be refused when its record is written."""
    record = _RECORD | values
    record["seal"] = records.seal(record)
    whole(records.check_record, record, "record")


def recordable_run(planned: Run, folder: Path) -> None:
    """None is refused after an hour, or stands elsewhere."""
    place = Path(os.path.abspath(planned.folder))
    assert place.parent == folder / planned.chapter.paper, f"a run in {planned.folder}"
    model = _RECORD["model"] | {"name": planned.model}
    recordable(model=model, parameters=dict(planned.given), seed=planned.parameters["seed"])


def settings_of(paper: str) -> st.SearchStrategy:
    values = st.one_of(some(["[1, 2]", "main", "none", ""]), numbers.map(json.dumps))
    names = mostly(some(list(CHAPTERS[paper].parameters)), texts)
    profiles = mostly(some(["smoke", "laptop", "paper"]), some(["smoke\n", "", "big"]))
    given_texts = st.dictionaries(names, mostly(values, texts), max_size=3)
    return st.tuples(st.just(paper), st.just("tiny"), profiles, given_texts)


_plain = [*KNOWN, "gpt2", "org/Name-1.5_b", "./model", "~/model", "mine"]
names = st.one_of(
    texts,
    some(_plain),
    st.builds("{}{}".format, some(_plain), some([*_plain, *HOSTILE])),
    st.text("abZ09._-/~@ \n", min_size=1, max_size=30),
).filter(lambda name: name not in EMBEDDED)  # these would be unpacked
model_names = st.tuples(st.just(TOY), names, st.just("smoke"), st.just({}))


def read_a_plan(case: tuple, folder: Path) -> None:
    paper, model, profile, given_texts = case
    planned = plan(CHAPTERS[paper], model, profile, given_texts, out=folder / "out")
    recordable_run(planned, folder / "out")
    planned.folder.mkdir(parents=True)
    prepare_model(planned.model)


SWEEP = re.search(r"```yaml\n(name: .*?)```", (ROOT / "book/rerun.md").read_text(), re.S)[1]


def read_a_sweep(content: bytes, folder: Path) -> None:
    path = put(folder / "sweep.yaml", content)
    planned = read_sweep(ROOT, path)
    top = ROOT / "build/sweeps" / planned.name
    assert planned.folder == top and top.name == planned.name, f"the folder is {planned.folder}"
    for name, job in planned.jobs.items():
        assert name.isprintable(), f"a job {name!r}"
        inside(planned.stamp(name), top / "stamps")
        recordable_run(job.run, top / name.split("/")[0])
    command(ROOT, planned, "slurm", 2, [])


# --- chapters and claims --------------------------------------------------------------------------


def chapter_file(name: str, *papers: str) -> st.SearchStrategy:
    """(paper, the name of one of its files, the file's content)."""

    def of(paper: str) -> st.SearchStrategy:
        file = name.format(paper)
        content = damaged_file(file, (SOURCES[paper] / file).read_text())
        return st.tuples(st.just(paper), st.just(file), content)

    return some(papers).flatmap(cache(of))


def lay(folder: Path, paper: str, name: str = "", content: bytes = b"") -> None:
    """Put a chapter into the project `folder`, by links; one of its files may be another."""
    place = chapter_folder(folder, paper)
    for path in filter(Path.is_file, SOURCES[paper].rglob("*")):
        there = place / path.relative_to(SOURCES[paper])
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(path)
    if name:
        put(place / name, content)


def record_of(claims: Claims) -> None:
    """The record that a run would leave with these claims is made, checked and shown."""
    content = claims.bundle({"name": "tiny", "sha256": None})[MIME]
    keys = ("paper", "title", "arxiv", "model", "measurements", "heads", "changes")
    entries = [claim | {"scope": "transfer"} for claim in content["claims"]]
    recordable(**{key: content[key] for key in keys}, claims=entries)
    verdict_table(entries)._repr_html_()


def read_chapter(case: tuple[str, str, bytes], folder: Path) -> None:
    """A chapter that is read can be shown, run in each of its profiles, and recorded."""
    lay(folder, *case)
    chapter = find_chapter(folder, case[0])
    changed_since(_RECORD, chapter)
    chapter.claims.table()._repr_html_()
    chapter.claims.history()._repr_html_()
    record_of(chapter.claims)
    for profile in chapter.profiles:
        for model in chapter.profile(profile).models:
            with contextlib.suppress(NotStored):  # an adapter that nobody has trained
                planned = plan(chapter, model, profile, {}, out=folder / "out")
                recordable_run(planned, folder / "out")


_PARTS = ["value", "low", "high", "n", "null_q95", "x", "0", "1e308", "9" * 320, "true"]
parts = some([*_PARTS, "abs(value)", "max(low, x)", "min(n, 9)", "-" * 700 + "value", "(low - 1)"])
signs = some(["+", "-", "*", "/", "<", "==", "and", "or", "and not"])
rules = mostly(
    some(["value > 0", "low > null_q95", "value < 0 or n < 5", "false"]),
    st.builds("{} {} {} {} {}".format, parts, signs, parts, signs, parts),
)
given_numbers = st.fixed_dictionaries(
    {
        "value": mostly(st.integers(-9, 9)),
        "interval": mostly(st.just((-10, 10)), st.tuples(numbers, numbers)),
        "n": mostly(st.integers(0, 100)),
        "null": st.dictionaries(mostly(st.just("q95"), texts), numbers, min_size=1, max_size=2),
    },
    optional={"unit": texts, "note": texts, "x": mostly(numbers)},
)
key = mostly(st.just("share"), texts)
measurements = st.tuples(st.tuples(rules, rules, rules), given_numbers, key, mostly(numbers))


def read_numbers(case: tuple, folder: Path) -> None:
    """A claim has all of its result or none."""
    given_rules, named, key, reported = case
    content = read_yaml((SOURCES[TOY] / "claims.yaml").read_text(), "claims", texts_only=True)
    content["claims"][0] |= zip(("gate", "holds_if", "fails_if"), given_rules, strict=True)
    content["claims"][0]["null"] = "by chance"
    claims = Claims.load(put(folder / "toy/claims.yaml", json.dumps(content)))
    try:
        claims.measure("1.1", **named)
        claims.report(key, reported)
    finally:
        record_of(claims)  # where an outcome without its number is refused


# --- records, and a reader's own data -------------------------------------------------------------


def read_a_record(content: bytes, folder: Path) -> None:
    """What is read can be written, compared, and shown on every page."""
    if len(content) % 4:  # whoever altered it seals it again; else the seal would refuse them all
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            record = json.loads(content)
            content = json.dumps(record | {"seal": records.seal(record)}).encode()
    path = put(folder / "runs" / IOI / "tiny/record.json", content)
    (found,) = runs.find_runs(folder / "runs", None)
    record = found.record
    records.record_values(record)
    again = folder / "again.json"
    whole(records.write_record, again, record)
    assert whole(records.read_record, again) == record, "read again it is another record"
    sizing.reference(record)
    put(records.certified_path(folder, record), RECORDS[-1])
    records.compare(folder, path.parent)
    with contextlib.suppress(UsageError):  # such as an unknown profile
        changed_since(record, CHAPTERS[IOI])
    tables.scorecard([found])
    tables.transfer([found])
    pages.landing_page([found], CHAPTERS[IOI].claims, "")
    switch = pages.model_switch(found.key, [found], [])
    pages.chapter_page(ROOT, found, switch, CHAPTERS[IOI].claims.model, {})
    if record["heads"]:
        atlas.page("tiny", [record])


_odd_runs = st.one_of(texts, st.builds("{}/{}".format, some([IOI, "x", "..", "."]), texts))
_runs = ["tiny", "..", "../x/tiny", "../../x"]
run_names = mostly(some([*(f"{IOI}/{run}" for run in _runs), f"../{IOI}/tiny"]), _odd_runs)


def read_run_names(names: list[str], folder: Path) -> None:
    for place in (f"runs/{IOI}/tiny", f"{IOI}/tiny", "runs/x/tiny", "x"):
        put(folder / place / "record.json", RECORDS[-1])
    for found in runs.find_runs(folder / "runs", names, folder / "results"):
        inside(folder / "page" / found.key, folder / "page" / found.paper)  # its page in the book
    for name in names:
        records.find_run(name, folder / "runs")


MANUAL = (ROOT / "book/commands.md").read_text()
EXAMPLES = dict(re.findall(r"\*\*`(\w+_file)`\*\*.*?```(?:json|text)\n(.*?)```", MANUAL, re.S))
# It knows every word of the manual, also after a space where it has a comma.
TOKENIZER = word_tokenizer([MANUAL, MANUAL.replace(",", " ")])


def read_facts(tokenizer: Any, path: Path) -> None:
    found = facts.readable(tokenizer, facts.facts_from_file(path), at_least=1)
    if conflicts := facts.draw_foils(tokenizer, found, 1, 0):
        facts.conflict_pairs(tokenizer, conflicts, facts.OWN_TEMPLATE)


# As the runner reads them before a run, and made into prompts as the chapter does.
OWN = prompts.READERS | {
    "facts_file": read_facts,
    "conflicts_file": lambda _, path: contexts.paragraph_cases(contexts.cases_from_file(path)),
}


def own_files(kind: str) -> st.SearchStrategy:
    """((the parameter, the file's name), its content), from the manual's example."""
    sound = {"mine.csv": EXAMPLES[kind]}
    if EXAMPLES[kind].startswith("["):
        lines = "\n".join(map(json.dumps, json.loads(EXAMPLES[kind])))
        sound = {"mine.json": EXAMPLES[kind], "mine.jsonl": lines}
    contents = {name: damaged([text], IN_JSON) for name, text in sound.items()}
    return some(list(sound)).flatmap(lambda name: st.tuples(st.just((kind, name)), contents[name]))


def read_own(case: tuple[tuple[str, str], bytes], folder: Path) -> None:
    (kind, name), content = case
    OWN[kind](TOKENIZER, put(folder / name, content))


# --- commands -------------------------------------------------------------------------------------

_TOC = (ROOT / "_toc.yml").read_text()
new_chapters = st.tuples(
    mostly(some(["sixth", "6-th-paper", "null", "1e3", TOY, "sixth\n", "x" * 61]), texts),
    mostly(st.one_of(some(["A Sixth Paper", "3.14", "It's [Draft]"]), st.text(min_size=3)), texts),
    mostly(some(["2601.00001", "2601.0001", "2601.00001\n", "٢٣١٠.٠٨٧٤٤"]), texts),
    mostly(st.just(_TOC.encode()), damaged([_TOC], IN_YAML)),
).filter(lambda case: not case[0].startswith("-"))  # which would be an option
# Commands with the options that they may be given.
LINES = {
    "list": "--help -h",
    "run toy": "--model=tiny --model=org/name --model=./notebooks --profile=smoke --device=auto "
    "-pmode=well -pprompts_file=_toc.yml --seed=7 --revision=main --out=../out --time-limit=60 "
    "--refusal=refused --refusal=notebooks",
    "sweep sweep.yaml": "--profile=slurm --profile=local --jobs=2 --dry-run",
    f"certify {IOI}/tiny": "--out=results --out=build/runs",
    f"verify {IOI}/tiny": "--out=results --out=build/runs",
    "new sixth-paper --title=Sixth --arxiv=2601.00001": "--title=Seventh --help",
    f"train {KNOB} --model=gpt2 --seed=1": "--format=weight --device=cuda --help",
    f"train {cells.PAPER}": "--cell=copy/rope-0.0056-s10-21 --cell=copy/rope-9-s10-1 "
    "--cores=1 --modl=tiny",
}


@st.composite
def command_lines(draw: Callable) -> list[str]:
    """A command in which up to two words, or values of options, are others."""
    start, options = draw(some(list(LINES.items())))
    line = [*start.split(), *draw(st.lists(some(options.split()), max_size=3))]
    for _ in range(draw(some([0, 0, 1, 2]))):
        # What --refusal names is written, wherever it is.
        place = draw(some([i for i, word in enumerate(line) if "--refusal" not in word]))
        flag, equals, _ = line[place].rpartition("=")
        line[place] = flag + equals + draw(st.one_of(texts, numbers.map(json.dumps)))
    return [word.replace("\0", "") for word in line]  # no command line has one


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_command_line(line: list[str], folder: Path, toc: bytes | str = _TOC) -> None:
    """The exit code says how it ended; a refusal is the only line, and writes nothing."""
    for paper in (TOY, IOI):
        lay(folder, paper)
    for place in ("build/runs", "results"):
        put(folder / place / IOI / "tiny/record.json", RECORDS[-1])
    put(folder / "sweep.yaml", "{name: trial, papers: [toy], models: [tiny], profile: smoke}")
    put(folder / "_toc.yml", toc)
    (folder / "workflow").symlink_to(ROOT / "workflow")
    before, out, err = tree(folder), io.StringIO(), io.StringIO()
    with (
        mock.patch.multiple("bookkit.cli", run_sweep=lambda *_: 0, to_run=lambda *_: {}),
        mock.patch("bookkit.cli.prepare", lambda runs, skip_missing: runs),
        mock.patch("bookkit.cli.execute", side_effect=RunFailed("nothing runs here")),
        mock.patch("replib.chapters.context_knob.training.train_adapter", return_value=Path()),
        mock.patch("replib.chapters.copying_mamba.training.train_cell", return_value=Path()),
        mock.patch.object(cells, "missing", return_value=[]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.main(line)
    out.getvalue().encode()  # a terminal could not show half a character
    said = err.getvalue()
    if code == 2:
        is_line = said.startswith("replib: ") and said.count("\n") == 1 and not out.getvalue()
        assert is_line, f"said {said!r} {out.getvalue()!r}"
        assert tree(folder) == before, "refused, and yet something was written"
        raise UsageError(said.removesuffix("\n"))
    is_told = code == 0 or (code == 1 and ("nothing runs here" in said or "verify" in line))
    assert is_told, f"ended with {code} and said {said!r}"


def read_new(case: tuple, folder: Path) -> None:
    slug, title, arxiv, toc = case
    read_command_line(["new", slug, f"--title={title}", f"--arxiv={arxiv}"], folder, toc)
    claims = whole(find_chapter, folder, slug).claims
    assert (claims.title, claims.arxiv) == (title, arxiv), "title or number is another"


# --- models and stored trainings ------------------------------------------------------------------

_WEIGHTS = "model.safetensors"
_FOREIGN_CODE = {"auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}


@cache
def model_folder() -> dict[str, bytes]:
    """The files of a small random model, as a user would have saved it, with an index."""
    with tempfile.TemporaryDirectory() as name:
        for part in tiny_parts("llama", 0):
            part.save_pretrained(name)
        index = {"metadata": {}, "weight_map": {"lm_head.weight": _WEIGHTS}}
        put(Path(name) / f"{_WEIGHTS}.index.json", json.dumps(index))
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


@st.composite
def model_files(draw: Callable) -> tuple[str, bytes]:
    """(the name of one of the files, its content)."""
    name = draw(some([*["config.json"] * 4, *[_WEIGHTS] * 2, *model_folder()]))
    raw = model_folder()[name]
    if name == _WEIGHTS:
        (length,) = struct.unpack("<Q", raw[:8])
        header = draw(damaged([raw[8 : 8 + length].decode()], IN_JSON))
        size = draw(mostly(st.just(len(header)), some([0, 1, 2**40, 2**64 - 1])))
        cut = draw(mostly(st.just(None), some([0, 8, 1000, -1])))
        return name, (struct.pack("<Q", size) + header + raw[8 + length :])[:cut]
    if name != "config.json":
        return name, draw(damaged([raw.decode()], IN_JSON))
    content = json.loads(raw) | draw(some([{}, _FOREIGN_CODE]))
    key = draw(some(list(content)))
    # More than a few layers would be built one by one; a size that fits no memory is refused.
    sizes = [0, 1, 3, -1, 0.5, math.nan, True, *([] if "layer" in key else [2**62, 10**400])]
    values = [*map(json.dumps, [*sizes, None, [], {}, "4", content[key]]), *IN_JSON]
    value = draw(st.one_of(some(values), texts.map(json.dumps)))
    return name, json.dumps(content | {key: "HERE"}).replace('"HERE"', value).encode()


def read_model_folder(case: tuple[str, bytes], folder: Path) -> None:
    for name, content in (model_folder() | dict([case])).items():
        put(folder / "mine" / name, content)
    put(folder / "mine/mine.py", f"open({str(ROOT / 'owned')!r}, 'w')")
    path = absolute_model("./mine")
    prepare_model(path)
    sizing.estimate(sizing.folder_size(folder / "mine"), "float32", "cpu", 8e9, None)
    load_model(path)


_VALUES = (math.nan, math.inf, -math.inf, 0.0, 1.0, 1e4, 6e4, 1e5, 1e30, -3e38)
_DTYPES = mostly(some(["float32", "bfloat16", "float16", "float64"]), st.just("auto"))
_TOKENS = torch.arange(5, 25)[None]
weights = st.lists(
    st.tuples(
        st.integers(0, 10**6),  # which weight
        some(["one value", "all values", "times", "dropped", "renamed", "cut"]),
        some(_VALUES),
    ),
    max_size=2,
)
shapes = st.dictionaries(
    some(["num_hidden_layers", "tie_word_embeddings", "attention_bias", "mlp_bias"]),
    some([True, False, 3, 4, 5]),
    max_size=1,
)


@cache
def adapter_files() -> dict[str, bytes]:
    """An adapter of the random model, as peft saves it."""
    with tempfile.TemporaryDirectory() as name:
        peft.get_peft_model(
            tiny_parts("llama", 0)[0],
            peft.LoraConfig(target_modules=["o_proj", "lm_head"], init_lora_weights=False),
        ).save_pretrained(name)
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


def read_weights(case: tuple, folder: Path) -> None:
    """What is loaded says numbers, and what is recomputed from it is what it says itself."""
    edits, config, is_adapted, dtype = case
    files = {name: raw for name, raw in model_folder().items() if not name.endswith("index.json")}
    tensors = safetensors.torch.load(files[_WEIGHTS])
    for which, edit, value in edits:
        key = sorted(tensors)[which % len(tensors)]
        tensor = tensors.pop(key)
        if edit == "one value":
            tensor.view(-1)[which % tensor.numel()] = value
        elif edit == "all values":
            tensor.fill_(value)
        elif edit == "times":
            tensor *= value
        elif edit == "cut":
            tensor = tensor[: len(tensor) // 2].clone()
        if edit != "dropped":
            tensors[f"{key}.more" if edit == "renamed" else key] = tensor
    files[_WEIGHTS] = safetensors.torch.save(tensors, metadata={"format": "pt"})
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | config).encode()
    for name, content in (files | (adapter_files() if is_adapted else {})).items():
        put(folder / "mine" / name, content)
    model = load_model(str(folder / "mine"), dtype=dtype)
    own = model(_TOKENS)
    assert own.isfinite().all(), "logits that are no numbers"
    net = Network(model)
    pairs = ioi_pairs(model.tokenizer, 2, 0)
    end = pairs.length - 1
    logits = model(pairs.clean)[torch.arange(2), end].double()
    diff = logits.gather(1, pairs.answer[:, None]) - logits.gather(1, pairs.foil[:, None])
    far = (head_edits.read(net, pairs).logit_diff[0].double() - diff[:, 0]).abs().max()
    close = 1e-3 if dtype in ("float32", "float64") else 5e-2
    assert far <= close * (1 + logits.abs().max()), f"recomputed logits are off by {far}"


number_types = st.tuples(
    mostly(some(["float32", "bfloat16", "float16", "float64", "auto"]), texts),
    some([1.0, 10.0, 1e3, 1e5, 1e20, 1e37]),
    some(["gpt2", "neox", "llama", "gemma3"]),
)


def read_number_type(case: tuple[str, float, str], folder: Path) -> None:
    """A model whose weights are grown says numbers in this type, or that it cannot."""
    dtype, factor, architecture = case
    kind = find_dtype(dtype, torch.device("cpu"))
    network, tokenizer = tiny_parts(architecture, 0)
    with torch.no_grad():
        network.get_input_embeddings().weight *= factor
    model = bridge_for(network.to(kind), tokenizer, "grown", Place("this machine"))
    assert model(_TOKENS).isfinite().all()
    pairs = ioi_pairs(tokenizer, 2, 0)
    assert head_edits.read(Network(model), pairs, full_vocabulary=True).logsumexp.isfinite().all()
    continuations(model, ["When Mary and John went"], 2)


_ROLES = {"[END]": "eos_token", "[PAD]": "pad_token", "[BEGIN]": "bos_token"}
tokenizers = st.tuples(
    st.lists(some(["<eos>", "<unk>", "the"]), max_size=2),  # in front of every text
    st.lists(some(["<eos>", "<pad>", "the"]), max_size=2),  # behind it
    st.dictionaries(some(list(_ROLES)), some([True, False]), max_size=2),  # new: with a row?
    some([None, normalizers.Lowercase(), normalizers.NFC(), normalizers.Strip()]),
    mostly(some(["When Mary and John went", "<eos>When Mary", "Then<pad>", "x [PAD] y"]), texts),
)


def read_tokenizer(case: tuple, folder: Path) -> None:
    """Texts are read whole, by ids with a row, and continued where they end; without habits as the
    tokenizer had them."""
    front, behind, new, normalizer, text = case
    network, tokenizer = tiny_parts("gpt2", 0)
    known = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*front, *behind}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*front, "$A", *behind], special_tokens=known
    )
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    for token, has_row in new.items():
        tokenizer.add_special_tokens({_ROLES[token]: token})
        if has_row:
            network.resize_token_embeddings(len(tokenizer))
    model = bridge_for(network, tokenizer, "mine", Place("this machine"))
    start = tokenizer("").input_ids
    pairs = ioi_pairs(tokenizer, 2, 0)
    sound = ioi_pairs(word_tokenizer(), 2, 0)
    for row, n, plain_row, m in zip(
        pairs.clean, pairs.length, sound.clean, sound.length, strict=True
    ):
        assert row[:n].tolist() == [*start, *plain_row[:m].tolist()], "the text is not as it was"
    assert model(pairs.clean).isfinite().all()
    assert text_loss(model, sound.text[0]).isfinite().all()
    continuations(model, pairs.text, 2)
    check_text(tokenizer, "row 1: clean", text)
    assert all(
        t < network.get_input_embeddings().weight.shape[0] for t in tokenizer(text).input_ids
    )


_CELL = cells.reported(ROOT, "copy", "hard-alibi")[0]
_ADAPTER = "adapters/smollm2-135m/weight-1"
cards = st.one_of(
    chapter_file(f"checkpoints/{_CELL.name}.json", cells.PAPER),
    *(chapter_file(f"{_ADAPTER}/{name}", KNOB) for name in (adapters.CARD, adapters.CONFIG)),
)


def read_card(case: tuple[str, str, bytes], folder: Path) -> None:
    lay(folder, *case)
    if case[0] == KNOB:
        adapters.check_adapter(folder, "smollm2-135m", None, "weight", 1)
    else:
        cells.is_stale(folder, cells.read_card(folder, _CELL))


# One kind of input each: the cases, and what reads one in an empty folder, the current one.
TARGETS: dict[str, tuple[st.SearchStrategy, Callable[[Any, Path], None]]] = {
    "parameters": (some(PAPERS).flatmap(settings_of), read_a_plan),
    "names of models": (model_names, read_a_plan),
    "claims files": (chapter_file("claims.yaml", *PAPERS), read_chapter),
    "numbers of a claim": (measurements, read_numbers),
    "profiles files": (chapter_file("profiles.yaml", *PAPERS), read_chapter),
    "notebooks": (chapter_file("{}.ipynb", TOY), read_chapter),
    "records": (damaged(RECORDS, IN_JSON), read_a_record),
    "names of runs": (st.lists(run_names, min_size=1, max_size=3), read_run_names),
    "sweep files": (damaged_file("sweep.yaml", SWEEP), read_a_sweep),
    **{f"own data, {kind}": (own_files(kind), read_own) for kind in OWN},
    "new chapters": (new_chapters, read_new),
    "command lines": (command_lines(), read_command_line),
    "folders with a model": (st.deferred(model_files), read_model_folder),
    "weights": (st.tuples(weights, shapes, st.booleans(), _DTYPES), read_weights),
    "number types": (number_types, read_number_type),
    "tokenizers": (tokenizers, read_tokenizer),
    "cards of stored trainings": (cards, read_card),
}
COLUMNS = ("input", "cases", "accepted", "refused in one line", "other")


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no fault; 1: some, each with its simplest case, and no table is written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    started, rows = time.monotonic(), []
    for name in TARGETS:
        try:
            counts = run(name, math.ceil(options.cases / len(TARGETS)), options.seed)
            rows.append([name, counts.total(), counts["accepted"], counts["refused"], 0])
        except Exception as error:
            traceback.print_exception(error)
            print(f"fuzz: {name}: a fault, see above")
    print(show(COLUMNS, rows))
    has_faults = len(rows) < len(TARGETS)
    if options.out is not None and not has_faults:
        what = "Hostile input, made from the project's own files: how each case ended."
        cases, seconds = sum(row[1] for row in rows), time.monotonic() - started
        write_table(options.out, what, COLUMNS, rows, seconds, cases=cases)
    return int(has_faults)


if __name__ == "__main__":
    sys.exit(main())
