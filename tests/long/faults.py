"""Break runs on purpose, and look at what is left of them. Called by `make faults`.

    python tests/long/faults.py --out results/trust/faults.json [--only KIND ...]

Each fault is put into a real run, through the command line, of a small chapter in a project of its
own, where an earlier good result stands. Afterwards these must be true, whatever happened:

- who was alive to speak said in one line what happened, and ended with a code that is not 0; or the
  run finished, and rightly so;
- the notebook that is left shows the cell at which it stopped;
- nothing that failed left a record, and no process is left;
- the earlier result is the same to the last byte, or was replaced as a whole by one that finished;
- the next run, without the fault and without help, succeeds and leaves one result.

Moments and places are drawn from the fault's name and number, so it can be met again.
"""

import argparse
import contextlib
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler

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
words = " ".join(sys.orig_argv)
at, under, how = (os.environ.get(f"FAULT_{name}") for name in ("AT", "UNDER", "HOW"))
if at and "bookkit.cli" in words:
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
    real = time.time
    def moved():
        with open(clock) as file:
            return real() + int(file.read() or 0)
    time.time, time.time_ns = moved, lambda: int(moved() * 10**9)
    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(moved(), tz)
    datetime.datetime = Moved
source = os.environ.get("FAULT_SOURCE")
if source and "bookkit" in words:
    import json
    from replib.models import sources
    sources.SOURCES["toy"] = sources.EmbeddedSource(**json.loads(source))
    sources.EMBEDDED, sources.KNOWN = (*sources.EMBEDDED, "toy"), (*sources.KNOWN, "toy")
"""
QUIET = r"^(dequantising |replib: \S+ on \S+: (cell \d+ of \d+|[\d,]+ parameters in ))"


Ended = subprocess.CompletedProcess[str]


def lines(said: str) -> list[str]:
    """What a run said, without its progress."""
    return [line for line in said.splitlines() if line and not re.search(QUIET, line)]


class Place:
    """A project with one small chapter, its runs, and whatever processes were started for it."""

    def __init__(self, folder: Path, out: Path, model: str, draw: random.Random, number: int):
        shutil.copytree(HERE / "notebooks", folder / "notebooks")
        shutil.copytree(ROOT / "workflow", folder / "workflow")
        (folder / "requirements.txt").write_text("torch==1\n")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        self.folder, self.out, self.model = folder, out, model
        self.draw, self.number = draw, number  # of moments and places; which of its kind
        self.notebook = folder / "notebooks/toy/toy.ipynb"
        self.whole = self.notebook.read_text()
        self.result = out / "toy" / model
        self.environment = os.environ | {"FAULT": str(folder), "REPLIB_THREADS": "1"}
        self.environment["PYTHONPATH"] = f"{folder}/site{os.pathsep}{PYTHONPATH}"
        self.before: dict[str, bytes] = {}  # the earlier result
        self.fault: dict[str, str] = {}  # more of the environment, until the last run
        self.limit: list[str] = []  # what stands before the command, until then

    def edit(self, code: str, at: int | None = None) -> None:
        """Put `code` before the source of the at-th code cell after the imports, or of each."""
        content = json.loads(self.whole)
        cells = [c for c in content["cells"] if c["cell_type"] == "code"][2:]
        for cell in cells if at is None else [cells[at % len(cells)]]:
            cell["source"] = f"{code}\n{''.join(cell['source'])}"
        self.notebook.write_text(json.dumps(content))

    def start(self, *words: str) -> subprocess.Popen:
        words = (*self.limit, sys.executable, "-m", "bookkit.cli", *words)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "errors": "replace"}
        return subprocess.Popen(words, cwd=self.folder, env=self.environment | self.fault, **pipes)

    def begin(self, *more: str, model: str = "") -> subprocess.Popen:
        """Start the run of its chapter."""
        words = ["run", "toy", "--model", model or self.model, "--profile", "smoke"]
        return self.start(*words, "--out", str(self.out), *more)

    def run(self, *more: str, model: str = "") -> Ended:
        return wait(self.begin(*more, model=model))

    def load(self, model: str = "") -> Ended:
        """A run whose last cell loads the model."""
        self.edit("from replib.models.load import load_model; load_model(model_name)", 5)
        return self.run(model=model)

    def family(self, word: str = "") -> list[psutil.Process]:
        """Every living process that was started for this place, with `word` in its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = process.environ().get("FAULT") == str(self.folder)
                if is_ours and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def find(self, word: str) -> psutil.Process:
        """The process with `word` in its command line, as soon as there is one."""
        for _ in range(600):
            if found := self.family(word):
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no process {word}")

    def snapshot(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.result.rglob("*") if path.is_file())
        return {str(path.relative_to(self.result)): path.read_bytes() for path in paths}


def wait(process: subprocess.Popen) -> Ended:
    try:
        told, said = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        raise AssertionError("the command did not end") from None
    return Ended(process.args, process.returncode, told, said)


# --- what must be true afterwards: an AssertionError says what is not -----------------------------


def told(ended: Ended, code: int = 0) -> str:
    """One line about what happened, and this code, or any but 0."""
    assert ended.returncode != 0, f"false success: {ended.stdout.strip()[-200:]}"
    is_right = ended.returncode == (code or ended.returncode)
    assert is_right, f"ended with {ended.returncode}: {ended.stderr[-400:]}"
    line, *more = lines(ended.stderr) or [""]
    is_line = not more and line.startswith("replib: ") and len(line) <= 2100
    assert is_line, f"not one line: {ended.stderr[-600:]!r}"
    return TOLD


def finished(ended: Ended, what: str = "it") -> str:
    is_quiet = ended.returncode == 0 and not lines(ended.stderr)
    assert is_quiet, f"{what} did not finish: {ended.returncode}, {ended.stderr[-400:]!r}"
    return FINISHED


def either(ended: Ended) -> str:
    """It had done its work before the fault, or told of it."""
    return finished(ended) if ended.returncode == 0 else told(ended)


def stopped_at(place: Place) -> None:
    """The notebook of the failed run shows one cell that failed."""
    path = place.out / "toy" / f"{place.model}.failed" / "notebook.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # A cell has two errors where the first cannot be shown.
    kinds = ({output["output_type"] for output in c.get("outputs", ())} for c in notebook.cells)
    cells = sum("error" in some for some in kinds)
    is_said = notebook.metadata.papermill.get("exception") is True
    assert cells == 1 and is_said, f"the notebook shows {cells} failed cells, not 1"
    log = (path.parent / "run.log").read_text(errors="replace").strip()
    assert "failed: " in log.splitlines()[-1], "the log does not end in the reason"


def none_left(place: Place, seconds: float = 15) -> None:
    """Every process ends within this time."""
    _, alive = psutil.wait_procs(place.family(), timeout=seconds)
    assert not alive, f"left a process: {alive[:1]}"


def undamaged(place: Place, how: str) -> None:
    """The earlier result as it was, unless the run could finish; a failed run has no record; every
    process is gone."""
    none_left(place)
    assert place.result.is_dir(), "the earlier result is gone"
    if place.snapshot() != place.before:
        assert how != TOLD, "the earlier result was changed"
        read_record(place.result / "record.json")
    assert not list(place.out.glob("toy/*.failed/record.json")), "a failed run has a record"


def recovers(place: Place) -> None:
    """The next run succeeds by itself and leaves one result and nothing else."""
    place.notebook.write_text(place.whole)
    place.fault, place.limit = {}, []
    for left in place.out.glob("toy/.*.tmp-*"):
        os.utime(left, (0, 0))  # left overs are swept after a minute
    finished(place.run(), "the next run")
    claims = read_record(place.result / "record.json")["claims"]
    is_same = claims == json.loads(place.before["record.json"])["claims"]
    assert is_same, "the next run measured something else"
    names = sorted(path.name for path in place.result.parent.iterdir())
    assert names == [place.model], f"the next run left {names}"


# --- the faults: each puts one into a run and says how that ended ---------------------------------

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
SLOWLY = "import time; time.sleep(0.25)"
ENDS = {KILL: -9, TERM: 143, INT: 130}  # how the runner ends
CHILD, KERNEL = "bookkit.run.child run", "bookkit.run.kernel"
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
TAKES_MEMORY = (
    "x = bytearray(64 << 30)",
    "x = [bytearray(64 << 20) for _ in range(1000)]",
    "import numpy as np; x = np.ones((1 << 16, 1 << 16))",
)
PRINTS = tuple(
    f"import sys\nfor _ in range({100 * MB // size}): sys.stdout.write('x' * {size - 1} + '\\n')"
    for size in (1 << 10, 1 << 16, 100 * MB)
)


def in_a_cell(codes: Sequence[str], place: Place) -> str:
    """One of the codes stands in one of the cells; the notebook shows that this cell failed."""
    place.edit(codes[place.number % len(codes)], place.draw.randrange(6))
    if codes is TAKES_MEMORY:
        place.limit = ["prlimit", f"--as={place.draw.randrange(2500, 5000) * MB}"]
    ended = place.run(*(["--time-limit", "9"] if codes is HANGS else []))
    if codes is PRINTS and ended.returncode == 0:
        return finished(ended)
    stopped_at(place)
    assert codes is not HANGS or "time limit of 9 s reached" in ended.stderr, ended.stderr[-300:]
    return told(ended, 1)


def signalled(word: str, seconds: float, signs: Sequence[signal.Signals], place: Place) -> str:
    """One of the signals reaches the process with `word` in its command line, or without a word the
    runner, at some moment."""
    place.edit(SLOWLY)
    process = place.begin()
    victim = place.find(word or CHILD)  # when it has a child, the runner handles signals
    time.sleep(place.draw.uniform(0, seconds))
    sign = place.draw.choice(signs)
    with contextlib.suppress(psutil.Error):
        (victim if word else process).send_signal(sign)
    ended = wait(process)
    if ended.returncode == 0:
        return finished(ended)
    if not word:
        # While Python closes, a signal ends it without our handler; the new result is there then.
        is_closing = sign != KILL and ended.returncode == -sign and not lines(ended.stderr)
        if is_closing and place.snapshot() != place.before:
            return FINISHED
        is_expected = ended.returncode == ENDS[sign] and "Traceback" not in ended.stderr
        assert is_expected, f"ended with {ended.returncode}: {ended.stderr[-300:]!r}"
        return SILENT if sign == KILL else TOLD
    if word == KERNEL:
        stopped = nbformat.read(place.out / "toy/tiny.failed/notebook.ipynb", as_version=4)
        assert stopped.metadata.papermill.exception, "the notebook does not say that it failed"
    return told(ended, 1)


def at_a_file(how: str, place: Place) -> str:
    """At the n-th file that the runner makes, opens for writing, renames or removes."""
    at, under = str(place.number + 1), str(place.out)
    place.fault = {"FAULT_AT": at, "FAULT_UNDER": under, "FAULT_HOW": how}
    ended = place.run()
    if how == "kill" and ended.returncode == -signal.SIGKILL:
        return SILENT
    # Finished: fewer such moments than that; or one that nothing depends on.
    return finished(ended) if how == "kill" else either(ended)


def not_a_number(place: Place) -> str:
    bad = place.draw.choice(("float('nan')", "float('inf')", "-float('inf')", "np.float32('nan')"))
    sound = place.draw.choice(("values.mean()", "values.std()", "(0, 1)"))
    new = f"(0, abs({bad}))" if sound == "(0, 1)" else bad
    place.notebook.write_text(place.whole.replace(sound, new, 1))
    ended = finished(place.run())
    claim = read_record(place.result / "record.json")["claims"][0]
    assert claim["outcome"] == "not_testable" and claim["reason"], f"{bad}: {claim['outcome']}"
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


def disk_full(place: Place) -> str:
    free, leave = os.statvfs(place.out), place.draw.randrange(0, 28 << 10)
    filler = place.out / "filler"
    filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave))
    try:
        return either(place.run())
    finally:
        filler.unlink()


def temporary_disk_full(place: Place) -> str:
    way = f"-t tmpfs -o size=8k,nr_inodes={place.number + 1} tmpfs"
    with mounted(place.folder / "tmp", way) as folder:
        place.fault["TMPDIR"] = str(folder)
        return either(place.run())


def at_once(n: int, place: Place) -> str:
    for process in [place.begin() for _ in range(n)]:
        finished(wait(process))
    return FINISHED


def clock_set_back(place: Place) -> str:
    """The wall clock of every process of the run; files of the earlier result are in the future."""
    clock = place.folder / "clock"
    clock.write_text("0")
    place.fault["FAULT_CLOCK"] = str(clock)
    place.edit(SLOWLY)
    process = place.begin()
    time.sleep(place.draw.uniform(0.5, 4))
    clock.write_text(str(-place.draw.choice((10, 3600, 86400, 400 * 86400))))
    ended = finished(wait(process))
    took = read_record(place.result / "record.json")["wall_time_s"]
    assert 0 < took < 60, "the time that the run took is wrong"
    for path in (place.result, *place.result.iterdir()):
        os.utime(path, (time.time() + 86400,) * 2)
    return ended


def workflow_killed(place: Place) -> str:
    """Snakemake, or `replib sweep`, in a sweep of three jobs; the same command then goes on."""
    place.edit(SLOWLY)
    sweep = "name: three\npapers: [toy]\nmodels: [tiny]\nseeds: [0, 1, 2]\nprofile: smoke\n"
    (place.folder / "three.yaml").write_text(sweep)
    words = ["sweep", "three.yaml", "--jobs", "2"]
    process = place.start(*words)
    victim = place.find(place.draw.choice(("snakemake", "bookkit.cli sweep")))
    time.sleep(place.draw.uniform(0, 12))
    with contextlib.suppress(psutil.Error):
        victim.kill()
    first = wait(process)
    none_left(place, 30)
    out = place.folder / "build" / "sweeps" / "three"
    for path in out.glob("*/toy/tiny/record.json"):
        read_record(path)
    second = wait(place.start(*words))
    assert second.returncode == 0, f"the same command did not go on: {second.stderr[-500:]}"
    assert place.snapshot() == place.before, "the earlier result was changed"
    seeds = sorted(read_record(path)["seed"] for path in out.glob("*/toy/tiny/record.json"))
    assert seeds == [0, 1, 2], f"the sweep ended with the seeds {seeds}"
    return FINISHED if first.returncode == 0 else SILENT


# --- weights and the hub --------------------------------------------------------------------------


def damaged(content: bytes, draw: random.Random, cut: bool) -> bytes:
    """Cut off somewhere, or with one bit flipped."""
    at = draw.randrange(len(content))
    flipped = content[at] ^ 1 << draw.randrange(8)
    return content[:at] if cut else content[:at] + bytes([flipped]) + content[at + 1 :]


def cache_damaged(cut: bool, place: Place) -> str:
    """The weights of `toy`, unpacked by the first run; another run must unpack them again."""
    weights = next((place.folder / "cache" / "models").glob("*/model.safetensors"))
    sound, times = weights.read_bytes(), weights.stat()
    if cut and place.draw.random() < 0.5:
        place.draw.choice(sorted(weights.parent.iterdir())).unlink()
    else:
        weights.write_bytes(damaged(sound, place.draw, cut))
        if place.number % 2 and not cut:  # as a bad disk does it
            os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = place.load()
    assert ended.returncode == 0, f"did not make the cache again: {ended.stderr[-400:]}"
    assert weights.read_bytes() == sound, "false success: the altered weights were used"
    return FINISHED


def cache_read_only(place: Place) -> str:
    cache = place.folder / "cache"
    unpacked = place.number % 2 == 0
    if not unpacked:
        shutil.rmtree(cache)
    with mounted(cache, f"--bind {cache}", "-o remount,bind,ro"):
        ended = place.load()
    return finished(ended) if unpacked else told(ended)


def embedded_weights_altered(place: Place) -> str:
    shutil.rmtree(place.folder / "cache")
    piece = place.folder / "site" / "toy_part2" / "piece"
    whole = piece.read_bytes()
    piece.write_bytes(damaged(whole, place.draw, cut=place.draw.random() < 0.5))
    ended = place.load()
    piece.write_bytes(whole)
    return told(ended, 2)


def folder_weights_broken(place: Place) -> str:
    """A folder of the user's own, saved whole, then broken."""
    from replib.models.tiny import tiny_parts

    folder = place.folder / "mine"
    for part in tiny_parts("llama", 0):
        part.save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    sound = weights.read_bytes()
    path, content = place.draw.choice(
        (
            (weights, damaged(sound, place.draw, cut=True)),
            (weights, (1 << 60).to_bytes(8, "little") + sound[8:]),  # a header beyond the file
            (weights, b"not a tensor in sight"),
            (config, json.dumps(json.loads(config.read_text()) | {"hidden_size": 64}).encode()),
            (config, b'{"model_type": '),
        )
    )
    path.write_bytes(content)
    return told(place.load(str(folder)), 2)


HUB = (
    *("unreachable", "slow", ""),  # the last hangs up
    *(f"HTTP/1.0 {code} No\r\n\r\n" for code in (500, 503, 429, 404, 401)),
    "HTTP/1.0 200 OK\r\nContent-Length: 25\r\n\r\n<html>no</html>",  # breaks off
    'HTTP/1.0 200 OK\r\nContent-Length: 18\r\n\r\n{"id": 1',
)


class Hub(StreamRequestHandler):
    """A hub that answers wrongly; how, its server says."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        if self.server.answer == "slow":
            time.sleep(60)
        self.wfile.write(self.server.answer.encode())


def hub_fails(place: Place) -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.answer = HUB[place.number % len(HUB)]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = 9 if server.answer == "unreachable" else server.server_port
    place.fault = {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    place.fault["HF_HOME"] = str(place.folder / "hub")
    started = time.monotonic()
    ended = place.run(model="someone/small")
    server.shutdown()
    server.server_close()
    assert time.monotonic() - started < 60, "waited for more than a minute"
    return told(ended, 2)


# --- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A row of the table: `count` faults in the long form, and what is special about them."""

    name: str
    fault: Callable[[Place], str]
    count: int
    short: tuple[int, ...] = ()  # which of them are in the tests
    root: bool = False  # needs root
    disk: bool = False  # the runs stand on a small disk of their own
    weights: bool = False  # with the embedded model `toy`


KILLS_ITSELF = ["import os; os.kill(os.getpid(), 9)"]
ANY_END = (KILL, TERM, signal.SIGSEGV)
KINDS = (
    Kind("kernel killed by its own cell", partial(in_a_cell, KILLS_ITSELF), 12, (0,)),
    Kind("kernel killed from outside", partial(signalled, KERNEL, 2.5, [KILL]), 12),
    Kind("papermill's process killed", partial(signalled, CHILD, 3.5, ANY_END), 12, (0,)),
    Kind("runner killed (SIGKILL)", partial(signalled, "", 4.5, [KILL]), 15),
    Kind("runner ended (SIGTERM)", partial(signalled, "", 4.5, [TERM]), 8),
    Kind("runner interrupted (Ctrl-C)", partial(signalled, "", 4.5, [INT]), 8),
    Kind("runner killed at its n-th file", partial(at_a_file, "kill"), 24, (4, 11)),
    Kind("disk full at the runner's n-th file", partial(at_a_file, "full"), 24, (3, 5)),
    Kind("disk full (tmpfs)", disk_full, 12, (0,), root=True, disk=True),
    Kind("folder for temporary files full", temporary_disk_full, 5, root=True),
    Kind("a cell raises", partial(in_a_cell, RAISES), len(RAISES), (2, 8)),
    Kind("a cell hangs past the limit", partial(in_a_cell, HANGS), 8),
    Kind("a cell prints 100 MB", partial(in_a_cell, PRINTS), 3),
    Kind("a measured value is not finite", not_a_number, 8, (1,)),
    Kind("memory limit hit", partial(in_a_cell, TAKES_MEMORY), 8, (0,)),
    Kind("Snakemake or the sweep killed", workflow_killed, 8),
    Kind("cache with one flipped bit", partial(cache_damaged, False), 6, (3,), weights=True),
    Kind("cache half-written", partial(cache_damaged, True), 6, weights=True),
    Kind("cache read-only", cache_read_only, 4, root=True, weights=True),
    Kind("embedded weights altered", embedded_weights_altered, 4, weights=True),
    Kind("weights of a folder broken", folder_weights_broken, 10),
    Kind("hub unreachable, slow or wrong", hub_fails, len(HUB)),
    Kind("two runs of one pair at once", partial(at_once, 2), 5),
    Kind("eight runs of one pair at once", partial(at_once, 8), 2, (0,)),
    Kind("clock set back", clock_set_back, 6, (0,)),
)
COLUMNS = ("fault", "injected", TOLD, FINISHED, SILENT, "wrong")


def inject(kind: Kind, number: int) -> str:
    """Put the number-th fault of a kind into a run; how it ended, or `wrong: ...`."""
    draw = random.Random(f"{kind.name} {number} 0")
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        out = folder / "p/out"
        if kind.disk:
            out = stack.enter_context(mounted(folder / "disk", "-t tmpfs -o size=4M tmpfs"))
        place = Place(folder / "p", out, "toy" if kind.weights else "tiny", draw, number)
        if kind.weights:
            from tiny_gguf import write_packages

            place.environment["FAULT_SOURCE"] = json.dumps(write_packages(place.folder / "site"))
            place.environment["REPLIB_CACHE"] = str(place.folder / "cache")
        try:
            finished(place.run())
            place.before = place.snapshot()
            how = kind.fault(place)
            undamaged(place, how)
            recovers(place)
        except (AssertionError, OSError, UsageError) as error:
            return f"wrong: {error}"
        finally:
            for process in place.family():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        return how


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], metavar="KIND", help="part of a name")
    given = parser.parse_args()
    # A shell's background job ignores Ctrl-C and passes that on; who handles it does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started, rows = time.monotonic(), []
    chosen = [kind for kind in KINDS if any(word in kind.name for word in given.only)]
    missing = [kind for kind in chosen if kind.root and os.geteuid() != 0]
    with ThreadPoolExecutor(2) as pool:
        put = {
            kind.name: pool.map(partial(inject, kind), range(kind.count))
            for kind in chosen
            if kind not in missing
        }
        for name, ends in put.items():
            counts: Counter = Counter()
            for number, end in enumerate(ends):
                counts[end.partition(":")[0]] += 1
                if end.startswith("wrong"):
                    print(f"  number {number}: {end[:1000]}", flush=True)
            print(f"{name}: {dict(counts)}", flush=True)
            rows.append([name, counts.total(), *(counts[how] for how in COLUMNS[2:])])
    seconds, n_wrong = time.monotonic() - started, sum(row[-1] for row in rows)
    print(show(COLUMNS, rows))
    print(f"{sum(row[1] for row in rows)} faults, {n_wrong} wrong, {seconds:.0f} s")
    left_out = [f"{kind.name}: needs root" for kind in missing]
    print(*(f"not injected: {kind}" for kind in left_out), sep="\n")
    if given.out:
        what = "Faults put into real runs, and how each ended; wrong would be a false success, a "
        what += "damaged or lost result, a process left behind, more or less than one line, or a "
        what += "next run that does not recover."
        write_table(given.out, what, COLUMNS, rows, seconds, not_injected=left_out)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
