"""Break runs on purpose, and look at what is left of them. Called by `make faults`.

    python tests/long/faults.py --out results/trust/faults.json [--only KIND ...] [--share 0.1]

Each fault is put into a real run, through the command line, of a small chapter in a project of its
own, where an earlier good result stands. Afterwards these must be true, whatever happened:

- who was alive to speak said in one line what happened, and ended with a code that is not 0; or the
  run finished, and rightly so;
- the notebook that is left shows the cell at which it stopped;
- nothing that failed left a record, and no process is left;
- the earlier result is the same to the last byte, or was replaced as a whole by one that finished;
- the next run, without the fault and without help, succeeds and leaves one result.

Moments and places are drawn from a seed, so a fault can be met again.
"""

import argparse
import atexit
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import psutil
from trust import HERE, PYTHONPATH, ROOT, show, write_table

from bookkit.records import read_record
from replib.errors import UsageError

TOLD, FINISHED, SILENT = "failed, told in one line", "finished rightly", "killed, left nothing"
MB = 1 << 20

# In every Python process of a fault. It counts what the watching process does with the files of the
# run, and at the n-th time ends it at once, or lets the operation fail as on a full disk.
SITE = """
import errno, os, signal, sys
at, under, how = (os.environ.get(f"FAULT_{name}") for name in ("AT", "UNDER", "HOW"))
if at and "bookkit.cli" in " ".join(sys.orig_argv):
    count = 0
    writing = ["os.rename", "os.mkdir"]
    if how == "kill":  # a full disk does not keep one from removing
        writing += ["os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"]
    def hook(event, arguments):
        global count
        name = str(arguments[0]) if arguments else ""
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if name.startswith(under) and (opened or event in writing):
            count += 1
            if count == int(at):
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    sys.addaudithook(hook)
clock = os.environ.get("FAULT_CLOCK")
if clock:  # libfaketime breaks waiting with a limit, so the clock is changed here
    import datetime, time
    real, real_ns = time.time, time.time_ns
    def moved():
        with open(clock) as file:
            return int(file.read() or 0)
    time.time = lambda: real() + moved()
    time.time_ns = lambda: real_ns() + moved() * 10**9
    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)
    datetime.datetime = Moved
source = os.environ.get("FAULT_SOURCE")
if source and any(word in " ".join(sys.orig_argv) for word in ("bookkit", "ipykernel")):
    import json
    from replib.models import sources
    sources.SOURCES["toy"] = sources.EmbeddedSource(**json.loads(source))
    sources.EMBEDDED, sources.KNOWN = (*sources.EMBEDDED, "toy"), (*sources.KNOWN, "toy")
"""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    said: str  # on standard error
    told: str = ""  # on standard output

    @property
    def lines(self) -> list[str]:
        """What it said, without its progress."""
        quiet = r"^(dequantising |replib: \S+ on \S+: (cell \d+ of \d+|[\d,]+ parameters in ))"
        return [line for line in self.said.splitlines() if line and not re.search(quiet, line)]


@dataclass
class Place:
    """A project with one small chapter, its runs, and whatever processes were started for it."""

    folder: Path
    out: Path
    model: str = "tiny"
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        shutil.copytree(HERE / "notebooks", self.folder / "notebooks")
        shutil.copytree(ROOT / "workflow", self.folder / "workflow")
        (self.folder / "requirements.txt").write_text("torch==1\n")
        (self.folder / "site").mkdir()
        (self.folder / "site" / "sitecustomize.py").write_text(SITE)
        self.notebook = self.folder / "notebooks/toy/toy.ipynb"
        self.whole = self.notebook.read_text()
        self.results = self.out / "toy"
        self.result = self.results / self.model

    def edit(self, place: int, code: str, everywhere: str = "") -> None:
        """Put `code` before the source of the place-th code cell after the imports, and
        `everywhere` before that of all of these."""
        content = json.loads(self.whole)
        cells = [c for c in content["cells"] if c["cell_type"] == "code"][2:]
        for number, cell in enumerate(cells):
            before = [everywhere, code if number == place % len(cells) else ""]
            cell["source"] = "\n".join([*filter(None, before), "".join(cell["source"])])
        self.notebook.write_text(json.dumps(content))

    def slowly(self) -> None:
        """Every cell takes a moment."""
        self.edit(0, "", everywhere="import time; time.sleep(0.25)")

    def mend(self) -> None:
        """The notebook as it was, and no fault in the environment."""
        self.notebook.write_text(self.whole)
        kept = ("FAULT_SOURCE", "REPLIB_CACHE")
        self.environment = {k: v for k, v in self.environment.items() if k in kept}

    def start(self, *words: str, before: Sequence[str] = ()) -> subprocess.Popen:
        path = f"{self.folder}/site{os.pathsep}{PYTHONPATH}"
        environment = os.environ | {"PYTHONPATH": path, "FAULT": self.mark, "REPLIB_THREADS": "1"}
        return subprocess.Popen(
            [*before, sys.executable, "-m", "bookkit.cli", *words],
            cwd=self.folder,
            env=environment | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def begin(self, *more: str, model: str = "", before: Sequence[str] = ()) -> subprocess.Popen:
        """Start the run of its chapter."""
        words = ["run", "toy", "--model", model or self.model, "--profile", "smoke"]
        return self.start(*words, "--out", str(self.out), *more, before=before)

    def run(self, *more: str, model: str = "", before: Sequence[str] = ()) -> Ended:
        return wait(self.begin(*more, model=model, before=before))

    def load(self, model: str = "") -> Ended:
        """A run whose last cell loads the model."""
        self.edit(5, "from replib.models.load import load_model; load_model(model_name)")
        return self.run(model=model)

    def family(self) -> list[psutil.Process]:
        """Every living process that was started for this place."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("FAULT") == self.mark:
                    found.append(process)
        return found

    def find(self, word: str, seconds: float = 60) -> psutil.Process:
        """The process with `word` in its command line, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for process in self.family():
                with contextlib.suppress(psutil.Error):
                    if word in " ".join(process.cmdline()):
                        return process
            time.sleep(0.05)
        raise Wrong(f"no process {word}")

    def snapshot(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.result.rglob("*") if path.is_file())
        return {str(path.relative_to(self.result)): path.read_bytes() for path in paths}


def wait(process: subprocess.Popen, seconds: float = 180) -> Ended:
    try:
        told, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        told, said = process.communicate()
        said += "\nthe command did not end"
    return Ended(process.returncode, said, told)


# --- what must be true afterwards -----------------------------------------------------------------


class Wrong(Exception):
    """Something that must never be; the message says what."""


def need(true: bool, otherwise: str) -> None:
    if not true:
        raise Wrong(otherwise)


def told(ended: Ended, *codes: int) -> str:
    """One line about what happened, and one of these codes, or any but 0."""
    need(ended.code != 0, f"false success: {ended.told.strip()[-200:]}")
    need(not codes or ended.code in codes, f"ended with {ended.code}: {ended.said[-400:]}")
    lines = ended.lines
    is_line = len(lines) == 1 and lines[0].startswith("replib: ") and len(lines[0]) <= 2100
    need(is_line, f"not one line: {ended.said[-600:]!r}")
    return TOLD


def finished(ended: Ended) -> str:
    is_quiet = ended.code == 0 and not ended.lines
    need(is_quiet, f"did not finish: {ended.code}, {ended.said[-400:]!r}")
    return FINISHED


def either(ended: Ended, *codes: int) -> str:
    """It had done its work before the fault, or told of it."""
    return finished(ended) if ended.code == 0 else told(ended, *codes)


def stopped_at(place: Place) -> None:
    """The notebook of the failed run shows one cell that failed."""
    path = place.results / f"{place.model}.failed" / "notebook.ipynb"
    need(path.is_file(), "no notebook of the failed run")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # A cell has two errors where the first cannot be shown.
    kinds = ({output["output_type"] for output in c.get("outputs", ())} for c in notebook.cells)
    cells = sum("error" in some for some in kinds)
    is_said = notebook.metadata.papermill.get("exception") is True
    need(cells == 1 and is_said, f"the notebook shows {cells} failed cells, not 1")
    log = (path.parent / "run.log").read_text(errors="replace").strip()
    need("failed: " in log.splitlines()[-1], "the log does not end in the reason")


def none_left(place: Place, seconds: float = 15) -> None:
    """Every process ends within this time."""
    _, alive = psutil.wait_procs(place.family(), timeout=seconds)
    need(not alive, f"left a process: {alive[:1]}")


def undamaged(place: Place, before: dict[str, bytes], replaced: bool = False) -> None:
    """The earlier result as it was; a failed run has no record; every process is gone."""
    none_left(place)
    need(place.result.is_dir(), "the earlier result is gone")
    if place.snapshot() != before:
        need(replaced, "the earlier result was changed")
        read_record(place.result / "record.json")
    need(not list(place.results.glob("*.failed/record.json")), "a failed run has a record")


def recovers(place: Place, before: dict[str, bytes]) -> None:
    """The next run succeeds by itself and leaves one result and nothing else."""
    place.mend()
    for left in place.results.glob(".*.tmp-*"):
        os.utime(left, (0, 0))  # left overs are swept after a minute
    try:
        finished(place.run())
        claims = read_record(place.result / "record.json")["claims"]
    except (Wrong, UsageError) as error:
        raise Wrong(f"the next run did not recover: {error}") from None
    is_same = claims == json.loads(before["record.json"])["claims"]
    need(is_same, "the next run measured something else")
    names = sorted(path.name for path in place.results.iterdir())
    need(names == [place.model], f"the next run left {names}")


# --- the faults: each puts one into a run and says how that ended ---------------------------------

Fault = Callable[[Place, random.Random, int], str]  # the last: which of its kind
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
ENDS = {KILL: -9, TERM: 143, INT: 130}  # how the runner ends
CHILD = "bookkit.run.child run"
RAISES = (
    "raise ValueError('on\\npurpose\\n' * 50)",
    "raise KeyboardInterrupt",
    "raise SystemExit(0)",
    "raise MemoryError",
    "raise BaseException('base')",
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
    "1 / 0",
    "assert False, '\\x1b[31m' + 'é' * 10_000",
    "import os; os._exit(0)",
    "import sys; sys.exit('bye')",
    "get_ipython().ask_exit()\nraise RuntimeError",
    "this is no Python",
)
HANGS = (
    "import time; time.sleep(600)",
    "while True: pass",
    "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)",
    "import subprocess; subprocess.run(['sleep', '600'])",
)
TIME_UP = "time limit of 9 s reached"
TAKES_MEMORY = (
    "x = bytearray(64 << 30)",
    "x = [bytearray(64 << 20) for _ in range(1000)]",
    "import numpy as np; x = np.ones((1 << 16, 1 << 16))",
)
PRINTS = tuple(
    f"import sys\nfor _ in range({100 * MB // size}): sys.stdout.write('x' * {size - 1} + '\\n')"
    for size in (1 << 10, 1 << 16, 100 * MB)
)


def _in_a_cell(
    codes: Sequence[str], *more: str, says: str = "", memory: bool = False, may: bool = False
) -> Fault:
    """One of the codes stands in one of the cells; the notebook shows that this cell failed, which
    it must, or else `may`."""

    def fault(place: Place, draw: random.Random, number: int) -> str:
        place.edit(draw.randrange(6), codes[number % len(codes)])
        limit = ["prlimit", f"--as={draw.randrange(2500, 5000) * MB}"] if memory else []
        ended = place.run(*more, before=limit)
        if may and ended.code == 0:
            return finished(ended)
        stopped_at(place)
        need(says in ended.said, f"does not say {says!r}: {ended.said[-300:]!r}")
        return told(ended, 1)

    return fault


def _signal(word: str, seconds: float, *signs: signal.Signals) -> Fault:
    """One of the signals reaches the process with `word` in its command line, or without a word the
    runner, at some moment."""

    def fault(place: Place, draw: random.Random, number: int) -> str:
        place.slowly()
        process = place.begin()
        victim = place.find(word or CHILD)  # when it has a child, the runner handles signals
        time.sleep(draw.uniform(0, seconds))
        sign = draw.choice(signs)
        with contextlib.suppress(psutil.Error):
            (victim if word else process).send_signal(sign)
        ended = wait(process)
        if ended.code == 0:
            return finished(ended)
        if not word:
            is_expected = ended.code == ENDS[sign] and "Traceback" not in ended.said
            need(is_expected, f"ended with {ended.code}: {ended.said[-300:]!r}")
            return SILENT if sign == KILL else TOLD
        if word == "ipykernel":
            stopped = nbformat.read(place.results / "tiny.failed/notebook.ipynb", as_version=4)
            is_said = stopped.metadata.papermill.exception
            need(is_said, "the notebook does not say that it failed")
        return told(ended, 1)

    return fault


def _at_a_file(how: str) -> Fault:
    """At the n-th file that the runner makes, opens for writing, renames or removes."""

    def fault(place: Place, draw: random.Random, number: int) -> str:
        at = {"FAULT_AT": str(number + 1), "FAULT_UNDER": str(place.out), "FAULT_HOW": how}
        place.environment |= at
        ended = place.run()
        if how == "kill" and ended.code == -signal.SIGKILL:
            return SILENT
        # Finished: fewer such moments than that; or one that nothing depends on.
        return finished(ended) if how == "kill" else either(ended)

    return fault


def not_a_number(place: Place, draw: random.Random, number: int) -> str:
    bad = draw.choice(("float('nan')", "float('inf')", "-float('inf')", "np.float32('nan')"))
    sound = draw.choice(("values.mean()", "values.std()", "(0, 1)"))
    new = f"(0, abs({bad}))" if sound == "(0, 1)" else bad
    place.notebook.write_text(place.whole.replace(sound, new, 1))
    ended = finished(place.run())
    claim = read_record(place.result / "record.json")["claims"][0]
    is_untested = claim["outcome"] == "not_testable" and claim["reason"]
    need(is_untested, f"{bad} gave {claim['outcome']}")
    return ended


@contextlib.contextmanager
def mounted(folder: Path, *ways: str) -> Iterator[Path]:
    """Mount something there in these ways, each the words of one command."""
    folder.mkdir(parents=True, exist_ok=True)
    for way in ways:
        subprocess.run(["mount", *way.split(), folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def disk_full(place: Place, draw: random.Random, number: int) -> str:
    free, leave = os.statvfs(place.out), draw.randrange(0, 28 << 10)
    filler = place.out / "filler"
    filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave))
    try:
        return either(place.run())
    finally:
        filler.unlink()


def temporary_disk_full(place: Place, draw: random.Random, number: int) -> str:
    way = f"-t tmpfs -o size=8k,nr_inodes={number + 1} tmpfs"
    with mounted(place.folder / "tmp", way) as folder:
        place.environment["TMPDIR"] = str(folder)
        return either(place.run())


def _at_once(n: int) -> Fault:
    def fault(place: Place, draw: random.Random, number: int) -> str:
        processes = [place.begin() for _ in range(n)]
        for process in processes:
            finished(wait(process))
        return FINISHED

    return fault


def clock_set_back(place: Place, draw: random.Random, number: int) -> str:
    """The wall clock of every process of the run; files of the earlier result are in the future."""
    clock = place.folder / "clock"
    clock.write_text("0")
    place.environment["FAULT_CLOCK"] = str(clock)
    place.slowly()
    process = place.begin()
    time.sleep(draw.uniform(0.5, 4))
    clock.write_text(str(-draw.choice((10, 3600, 86400, 400 * 86400))))
    ended = finished(wait(process))
    took = read_record(place.result / "record.json")["wall_time_s"]
    need(0 < took < 60, "the time that the run took is wrong")
    for path in (place.result, *place.result.iterdir()):
        os.utime(path, (time.time() + 86400,) * 2)
    return ended


def workflow_killed(place: Place, draw: random.Random, number: int) -> str:
    """Snakemake, or `replib sweep`, in a sweep of three jobs; the same command then goes on."""
    place.slowly()
    sweep = "name: three\npapers: [toy]\nmodels: [tiny]\nseeds: [0, 1, 2]\nprofile: smoke\n"
    (place.folder / "three.yaml").write_text(sweep)
    words = ["sweep", "three.yaml", "--jobs", "2"]
    process = place.start(*words)
    victim = place.find(draw.choice(("snakemake", "bookkit.cli sweep")))
    time.sleep(draw.uniform(0, 12))
    with contextlib.suppress(psutil.Error):
        victim.kill()
    first = wait(process)
    none_left(place, 30)
    out = place.folder / "build" / "sweeps" / "three"
    for path in out.glob("*/toy/tiny/record.json"):
        read_record(path)
    second = wait(place.start(*words))
    need(second.code == 0, f"the same command did not go on: {second.said[-500:]}")
    seeds = sorted(read_record(path)["seed"] for path in out.glob("*/toy/tiny/record.json"))
    need(seeds == [0, 1, 2], f"the sweep ended with the seeds {seeds}")
    return FINISHED if first.code == 0 else SILENT


# --- weights and the hub --------------------------------------------------------------------------


def _toy_weights(place: Place) -> None:
    """An embedded model of the name `toy` in two packages."""
    from tiny_gguf import write_gguf

    write_gguf(place.folder / "whole.gguf")
    whole = (place.folder / "whole.gguf").read_bytes()
    for number, piece in enumerate((whole[:1000], whole[1000:]), 1):
        package = place.folder / "site" / f"toy_part{number}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "piece").write_bytes(piece)
    source = {"requirements": ["toy==1.0"], "note": "toy"}
    source["parts"] = [f"toy_part{number}/piece" for number in (1, 2)]
    source["sha256"] = hashlib.sha256(whole).hexdigest()
    place.environment["FAULT_SOURCE"] = json.dumps(source)
    place.environment["REPLIB_CACHE"] = str(place.folder / "cache")


def _damaged(content: bytes, draw: random.Random, cut: bool) -> bytes:
    """Cut off somewhere, or with one bit flipped."""
    at = draw.randrange(len(content))
    flipped = content[at] ^ 1 << draw.randrange(8)
    return content[:at] if cut else content[:at] + bytes([flipped]) + content[at + 1 :]


def _cache_damaged(cut: bool) -> Fault:
    """The weights of `toy`, unpacked by the first run; another run must unpack them again."""

    def fault(place: Place, draw: random.Random, number: int) -> str:
        weights = next((place.folder / "cache" / "models").glob("*/model.safetensors"))
        sound, times = weights.read_bytes(), weights.stat()
        if cut and draw.random() < 0.5:
            draw.choice(sorted(weights.parent.iterdir())).unlink()
        else:
            weights.write_bytes(_damaged(sound, draw, cut))
            if number % 2 and not cut:  # as a bad disk does it
                os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        ended = place.load()
        need(ended.code == 0, f"did not make the cache again: {ended.said[-400:]}")
        need(weights.read_bytes() == sound, "false success: the altered weights were used")
        return FINISHED

    return fault


def cache_read_only(place: Place, draw: random.Random, number: int) -> str:
    cache = place.folder / "cache"
    unpacked = number % 2 == 0
    if not unpacked:
        shutil.rmtree(cache)
    with mounted(cache, f"--bind {cache}", "-o remount,bind,ro"):
        ended = place.load()
    return finished(ended) if unpacked else told(ended)


def embedded_weights_altered(place: Place, draw: random.Random, number: int) -> str:
    shutil.rmtree(place.folder / "cache")
    piece = place.folder / "site" / "toy_part2" / "piece"
    whole = piece.read_bytes()
    piece.write_bytes(_damaged(whole, draw, cut=draw.random() < 0.5))
    ended = place.load()
    piece.write_bytes(whole)
    return told(ended, 2)


@cache
def _saved_model() -> Path:
    from matrix import save_model

    folder = Path(tempfile.mkdtemp(prefix="fault-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_model("llama", folder)


def folder_weights_broken(place: Place, draw: random.Random, number: int) -> str:
    """A folder of the user's own, saved whole, then broken."""
    folder = place.folder / "mine"
    shutil.copytree(_saved_model(), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    sound = weights.read_bytes()
    path, content = draw.choice(
        (
            (weights, _damaged(sound, draw, cut=True)),
            (weights, (1 << 60).to_bytes(8, "little") + sound[8:]),  # a header beyond the file
            (weights, b"not a tensor in sight"),
            (config, json.dumps(json.loads(config.read_text()) | {"hidden_size": 64}).encode()),
            (config, b'{"model_type": '),
        )
    )
    path.write_bytes(content)
    return told(place.load(str(folder)), 2)


class _Hub(BaseHTTPRequestHandler):
    """A hub that answers wrongly; how, its server says."""

    def do_GET(self) -> None:
        answer = self.server.answer
        if answer == "slow":
            time.sleep(60)
        elif answer == "hang up":
            self.connection.close()
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer) + 10))  # breaks off
            self.end_headers()
            self.wfile.write(answer.encode())

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


HUB = ("unreachable", "slow", "hang up", 500, 503, 429, 404, 401, "<html>no</html>", '{"id": 1')


def hub_fails(place: Place, draw: random.Random, number: int) -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.answer = HUB[number % len(HUB)]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = 9 if server.answer == "unreachable" else server.server_port
    place.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
    place.environment["HF_HOME"] = str(place.folder / "hub")
    started = time.monotonic()
    ended = place.run(model="someone/small")
    server.shutdown()
    server.server_close()
    need(time.monotonic() - started < 60, "waited for more than a minute")
    return told(ended, 2)


# --- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A row of the table: `count` faults in the long form, and what is special about them."""

    name: str
    fault: Fault
    count: int
    replaces: bool = True  # the run may finish, and put its result in the place of the earlier
    root: bool = False  # needs root
    disk: bool = False  # the runs stand on a small disk of their own
    weights: bool = False  # with the embedded model `toy`


KILLS_ITSELF = ["import os; os.kill(os.getpid(), 9)"]
HANGING = _in_a_cell(HANGS, "--time-limit", "9", says=TIME_UP)
KINDS = (
    Kind("kernel killed by its own cell", _in_a_cell(KILLS_ITSELF), 12, replaces=False),
    Kind("kernel killed from outside", _signal("ipykernel", 2.5, KILL), 12),
    Kind("papermill's process killed", _signal(CHILD, 3.5, KILL, TERM, signal.SIGSEGV), 12),
    Kind("runner killed (SIGKILL)", _signal("", 4.5, KILL), 15),
    Kind("runner ended (SIGTERM)", _signal("", 4.5, TERM), 8),
    Kind("runner interrupted (Ctrl-C)", _signal("", 4.5, INT), 8),
    Kind("runner killed at its n-th file", _at_a_file("kill"), 24),
    Kind("disk full at the runner's n-th file", _at_a_file("full"), 24),
    Kind("disk full (tmpfs)", disk_full, 12, root=True, disk=True),
    Kind("folder for temporary files full", temporary_disk_full, 5, root=True),
    Kind("a cell raises", _in_a_cell(RAISES), len(RAISES), replaces=False),
    Kind("a cell hangs past the limit", HANGING, 8, replaces=False),
    Kind("a cell prints 100 MB", _in_a_cell(PRINTS, may=True), 3),
    Kind("a measured value is not finite", not_a_number, 8),
    Kind("memory limit hit", _in_a_cell(TAKES_MEMORY, memory=True), 8, replaces=False),
    Kind("Snakemake or the sweep killed", workflow_killed, 8, replaces=False),
    Kind("cache with one flipped bit", _cache_damaged(cut=False), 6, weights=True),
    Kind("cache half-written", _cache_damaged(cut=True), 6, weights=True),
    Kind("cache read-only", cache_read_only, 4, root=True, weights=True),
    Kind("embedded weights altered", embedded_weights_altered, 4, replaces=False, weights=True),
    Kind("weights of a folder broken", folder_weights_broken, 10, replaces=False),
    Kind("hub unreachable, slow or wrong", hub_fails, len(HUB), replaces=False),
    Kind("two runs of one pair at once", _at_once(2), 5),
    Kind("eight runs of one pair at once", _at_once(8), 2),
    Kind("clock set back", clock_set_back, 6),
)
COLUMNS = ("fault", "injected", TOLD, FINISHED, SILENT, "wrong")


def lacks(kind: Kind) -> str:
    """What this machine lacks for a kind of fault; empty if nothing."""
    return "needs root" if kind.root and os.geteuid() != 0 else ""


def inject(kind: Kind, number: int, seed: int = 0) -> str:
    """Put the number-th fault of a kind into a run; how it ended, or `wrong: ...`."""
    draw = random.Random(f"{kind.name} {number} {seed}")
    with (
        tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        out = folder / "p/out"
        if kind.disk:
            out = stack.enter_context(mounted(folder / "disk", "-t tmpfs -o size=4M tmpfs"))
        place = Place(folder / "p", out, "toy" if kind.weights else "tiny")
        if kind.weights:
            _toy_weights(place)
        try:
            finished(place.run())
            before = place.snapshot()
            how = kind.fault(place, draw, number)
            undamaged(place, before, kind.replaces and how != TOLD)
            recovers(place, before)
        except Wrong as error:
            return f"wrong: {error}"
        finally:
            for process in place.family():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        return how


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of each kind's count, at least 1")
    parser.add_argument("--only", nargs="+", default=[""], metavar="KIND", help="part of a name")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    given = parser.parse_args()
    # A shell's background job ignores Ctrl-C and passes that on; who handles it does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started, rows = time.monotonic(), []
    chosen = [kind for kind in KINDS if any(word in kind.name for word in given.only)]
    missing = [f"{kind.name}: {lacks(kind)}" for kind in chosen if lacks(kind)]
    with ThreadPoolExecutor(given.jobs) as pool:
        put = {
            kind: [
                pool.submit(inject, kind, number, given.seed)
                for number in range(max(1, round(kind.count * given.share)))
            ]
            for kind in chosen
            if not lacks(kind)
        }
        for kind, waiting in put.items():
            ends = [one.result() for one in waiting]
            counts = Counter(end.partition(":")[0] for end in ends)
            rows.append([kind.name, len(ends), *(counts[how] for how in COLUMNS[2:])])
            print(f"{kind.name}: {dict(counts)}", flush=True)
            for number, end in enumerate(ends):
                if end.startswith("wrong"):
                    print(f"  number {number}: {end[:1000]}", flush=True)
    seconds, n_wrong = time.monotonic() - started, sum(row[-1] for row in rows)
    print(show(COLUMNS, rows))
    print(f"{sum(row[1] for row in rows)} faults, {n_wrong} wrong, {seconds:.0f} s")
    print(*(f"not injected: {lack}" for lack in missing), sep="\n")
    if given.out:
        what = "Faults put into real runs, and how each ended; wrong would be a false success, a "
        what += "damaged or lost result, a process left behind, more or less than one line, or a "
        what += "next run that does not recover."
        write_table(given.out, what, COLUMNS, rows, seconds, not_injected=missing)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
