"""Run a paper's notebook on a model, in a process of its own, and keep what came of it.

    chapter = find_chapter(find_root(), "some-paper")
    run = plan(chapter, "tiny", "smoke", {"n_prompts": "20"}, out=Path("build/runs"))
    execute(run)      # DIR/<paper>/<model>/{notebook.ipynb, record.json, run.log}

Everything that a user can get wrong is checked by `plan` and `prepare`, before anything is written.
`execute` works in a hidden folder beside the destination and renames it at the end, so a folder
with a `record.json` is always a finished run. A failed run leaves `<model>.failed/` with the
notebook, in which the cell that failed is marked, and the log. Three processes: this one watches;
`bookkit.run.child` runs papermill; papermill starts the kernel.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bookkit.project import chapter_folder
from bookkit.records import bundles, write_record
from bookkit.run.environment import environment_hash, kernel_version, package_versions
from bookkit.run.numerics import usual, variables
from bookkit.run.plan import Run, stored_inputs
from bookkit.run.watch import Watched, watch_process
from replib.errors import UsageError, one_line
from replib.files import put_in_place
from replib.hashes import file_hash
from replib.interventions import budget as batches
from replib.models.sources import NETWORKS


class RunFailed(Exception):
    """A run that was started and did not finish; the message is one line."""


def execute(run: Run, progress: Callable[[int, int], None] | None = None) -> Path:
    """Run the notebook to its end; the folder with notebook, record and log.

    `progress` is called again and again with (code cells begun, code cells in all).

    Raises RunFailed when a cell fails, the kernel dies, the time is up or a claim is missing; then
    `run.failed` has notebook and log, and an earlier result stays. UsageError when the notebook
    raised one; then nothing is kept.
    """
    made = [path for path in (run.folder.parent, *run.folder.parent.parents) if not path.exists()]
    try:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(run)
        work = Path(tempfile.mkdtemp(dir=run.folder.parent, prefix=f".{run.folder.name}.tmp-"))
    except OSError as error:
        raise UsageError(f"output folder {run.folder}: {error.strerror}") from None
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work.chmod(0o755)
        return _execute_in(work, run, progress or (lambda begun, total: None))
    except OSError as error:  # the disk is full, or gone
        raise RunFailed(
            f"{run.name} failed: {error.strerror or error}: {error.filename or run.folder}"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if nothing came of it


def _execute_in(work: Path, run: Run, progress: Callable[[int, int], None]) -> Path:
    chapter = run.chapter
    notebook, source, log = work / "notebook.ipynb", work / "source.ipynb", work / "run.log"
    source.write_text(chapter.notebook, encoding="utf-8")
    files = {name: file_hash(path) for name, path in run.files.items()}
    hashes = {
        **chapter.hashes(run.model, run.profile),
        "environment": environment_hash(),
        "inputs": files | stored_inputs(chapter, run.parameters),
    }
    changed = {
        name: run.parameters[name]
        for name, parameter in chapter.parameters.items()
        if repr(run.parameters[name]) != repr(parameter.default)
    }
    folder = chapter_folder(chapter.root, chapter.paper)
    job = {"source": str(source), "notebook": str(notebook), "folder": str(folder)}
    job["parameters"] = changed
    numerics = run.numerics or usual()
    started = datetime.now(UTC)
    clock = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"{run.name}, profile {run.profile}, {started:%Y-%m-%dT%H:%M:%SZ}\n")
        file.write(f"parameters: {json.dumps(dict(run.given))}\n")
        file.flush()
        extra = variables(numerics) | {
            batches.VARIABLE: str(run.estimate.batch_scale if run.estimate else 1.0)
        }
        if run.gpu is not None:
            extra["CUDA_VISIBLE_DEVICES"] = run.gpu
        watched = watch_process(job, run.time_limit_s, file, progress, extra)
    wall = time.monotonic() - clock
    source.unlink()

    try:
        _check_end(run, watched)
        bundle = _bundle(run, notebook)
    except RunFailed as failed:
        _mark(notebook, watched, str(failed), chapter.notebook)
        _tidy(notebook, chapter.paper)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"\nfailed: {failed}\n")
        put_in_place(work, run.failed)
        raise RunFailed(f"{run.name} failed: {failed} (see {_short(run.failed)})") from None

    kernel = kernel_version(json.loads(notebook.read_text(encoding="utf-8")))
    _tidy(notebook, chapter.paper)
    # Networks that a chapter trains have no other size in the profile `paper`.
    own = run.model == chapter.claims.model and (run.profile == "paper" or run.model in NETWORKS)
    scope = "method" if chapter.claims.is_method else "replication" if own else "transfer"
    calibration = None
    if run.estimate:
        scale = run.estimate.batch_scale
        calibration = asdict(run.estimate.size) | {"speed": run.speed, "batch_scale": scale}
    taken = ("paper", "title", "arxiv", "model", "measurements", "heads", "changes")
    record = {
        "schema_version": 1,
        **{key: bundle[key] for key in taken},
        "profile": run.profile,
        "parameters": dict(run.given),
        "seed": run.parameters["seed"],
        "claims": [claim | {"scope": scope} for claim in bundle["claims"]],
        "status": "finished",
        "hashes": hashes | {"weights": bundle["model"]["sha256"]},
        "versions": package_versions() | {"kernel": kernel},
        "device": run.parameters["device"],
        "threads": numerics.threads,
        "numerics": numerics.model_dump(),
        "wall_time_s": round(wall, 1),
        "peak_memory_mb": round(watched.peak_bytes / 1e6, 1),
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "calibration": calibration,
    }
    write_record(work / "record.json", record)
    put_in_place(work, run.folder)
    shutil.rmtree(run.failed, ignore_errors=True)
    return run.folder


def _check_end(run: Run, watched: Watched) -> None:
    """RunFailed unless the notebook was run to its end; UsageError where it raised one."""
    cell, end = watched.cell, watched.end
    place = f"in cell [{cell['code']}], `{cell['line']}`" if cell else "before its first cell"
    if watched.timed_out:
        raise RunFailed(f"time limit of {run.time_limit_s:g} s reached {place}")
    if end is None:
        raise RunFailed(f"its process ended with {watched.exit_code} {place}")
    if end["end"] == "usage":
        raise UsageError(f"{end['error']} ({place.partition(',')[0]})")
    if end.get("in_library") and run.architecture:
        raise UsageError(
            f"{run.chapter.paper} cannot be run on {run.architecture}, whose parts are not known "
            f"here: {end['error']} ({place.partition(',')[0]}); known to work: Llama, Mistral, "
            "Qwen3, Gemma 3, GPT-2, GPT-NeoX"
        )
    if end["end"] == "dead":
        raise RunFailed(f"the kernel died {place} (out of memory, or killed)")
    if end["end"] != "finished":
        raise RunFailed(f"{end['error']} {place}")


def _bundle(run: Run, notebook: Path) -> dict[str, Any]:
    """The claims as the notebook's last code cell left them, checked against the claims file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":  # papermill lets SystemExit(0) pass
                text = one_line(f"{output['ename']}: {output['evalue']}", 300)
                raise RunFailed(f"{text} in cell [{number}], which ended the notebook early")
        pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        if "figure" in cell["metadata"].get("mystnb", {}) and not pictures:
            raise RunFailed(f"cell [{number}] drew no figure; was matplotlib's backend changed?")
    found = bundles(code)
    if len(found) != 1:
        raise RunFailed(
            f"the notebook ended with {len(found)} tables of verdicts; its last code cell must "
            "call claims.verdicts(...) once"
        )
    cell, bundle = found[0]
    if cell is not code[-1] or "claims" not in cell["metadata"].get("tags", ()):
        raise RunFailed("the verdicts must come from the last code cell, with the tag claims")
    expected = [claim.id for claim in run.chapter.claims.claims]
    got = [claim["id"] for claim in bundle["claims"]]
    if missing := [claim for claim in expected if claim not in got]:
        raise RunFailed(f"claim {missing[0]} is missing from the verdicts")
    if got != expected or bundle["claims_sha256"] != run.chapter.claims.sha256:
        raise RunFailed("the verdicts are about another claims file, or it changed during the run")
    if bundle["model"]["name"] != run.model:
        raise RunFailed(f"the notebook measured {bundle['model']['name']!r}, not {run.model!r}")
    return bundle


def _mark(notebook: Path, watched: Watched, failure: str, source: str) -> None:
    """Mark the cell that ran when the run ended, where papermill did not.

    papermill saves an ordinary error truthfully; after a dead kernel or a kill its file says that
    every cell is completed, or that one still runs, or breaks off in the middle.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = json.loads(source)
    end = watched.end["end"] if watched.end is not None else "killed"
    content["metadata"].setdefault("papermill", {})["exception"] = True
    name = "TimeLimit" if watched.timed_out else "RunFailed"
    error = {"output_type": "error", "ename": name, "evalue": failure, "traceback": [failure]}
    seen = False
    for cell in content["cells"] if end != "cell" else []:
        about = cell["metadata"].setdefault("papermill", {})
        if seen:
            about["status"] = "pending" if end != "finished" else "completed"
        if watched.cell is not None and cell.get("id") == watched.cell["id"]:
            seen = True
            cell["execution_count"] = watched.cell["code"]
            about.update(status="failed", exception=True)
            outputs = cell.setdefault("outputs", [])
            if all(output["output_type"] != "error" for output in outputs):
                outputs.append(error)
    notebook.write_text(json.dumps(content), encoding="utf-8")


def _tidy(notebook: Path, paper: str) -> None:
    """Take this machine's paths out of what papermill wrote about the notebook."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    about = content["metadata"].get("papermill", {})
    if "input_path" in about:
        about |= {"input_path": f"notebooks/{paper}/{paper}.ipynb", "output_path": "notebook.ipynb"}
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sweep(run: Run) -> None:
    """Remove what runs that were killed left beside the destination; running ones hold a lock."""
    for work in run.folder.parent.glob(f".{run.folder.name}.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - work.stat().st_mtime < 60:
                continue
            lock = os.open(work, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(work, ignore_errors=True)
            finally:
                os.close(lock)


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
