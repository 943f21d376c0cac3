"""The run's own processes: the one that runs papermill, and the one that looks at models."""

import contextlib
import json
import logging
import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from bookkit.project import chapter_module
from bookkit.run import resources as sizing
from replib.errors import UsageError, one_line
from replib.models import sources
from replib.models.threads import n_threads


def _run_child() -> None:
    """Run papermill for the job on standard input; when that ends, the process that watches us is
    gone, and so are we."""
    say = _speaker()
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    end = _papermill(job, say)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    say(end | {"peak_bytes": peak if sys.platform == "darwin" else peak * 1024})


def _speaker() -> Callable[[Mapping[str, Any]], None]:
    """Says messages, as JSON lines on a copy of standard output; the output itself, which the
    kernel inherits, goes to the log from now on."""
    say_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=say_to, flush=True)


def _papermill(job: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    with open(job["source"], encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    code = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]
    total = len([source for source in code if source]) + bool(job["parameters"])  # injected
    begun = 0

    def cell_start(cell: Any, cell_index: int) -> None:
        nonlocal begun
        if cell.cell_type == "code" and cell.source.strip():
            begun += 1
            line = one_line(cell.source.strip().splitlines()[0], 60)
            say({"code": begun, "of": total, "id": cell.get("id"), "line": line})

    # Through sockets in the file system, not ports: two kernels that start at once may take the
    # same port. `ip` is where the sockets stand; a socket's path has room for some 100 bytes.
    sockets = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "kernel")
    ipc = {"transport": "ipc", "ip": sockets} if len(os.fsencode(sockets)) < 90 else {}
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    try:
        papermill.execute_notebook(
            job["source"].translate(braces),
            job["notebook"].translate(braces),
            parameters=job["parameters"],
            kernel_name="python3",
            cwd=job["folder"],
            progress_bar=False,
            log_output=True,
            start_timeout=120,
            iopub_timeout=120,
            config=Config({"KernelManager": ipc}),
            on_cell_start=cell_start,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "UsageError":
            return {"end": "usage", "error": one_line(error.evalue, 1000)}
        theirs = any(
            re.search(r"/(replib|transformer_lens|transformers)/", line) for line in error.traceback
        )
        said = one_line(f"{error.ename}: {error.evalue}", 300)
        return {"end": "cell", "error": said, "in_library": theirs}
    except DeadKernelError:
        return {"end": "dead"}
    except Exception as error:
        logging.exception("papermill failed")
        return {"end": "other", "error": one_line(f"{type(error).__name__}: {error}", 300)}
    return {"end": "finished"}


def _die_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would be held when we end
        pass
    for member in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            member.kill()
    os._exit(1)


def _prepare_child() -> None:
    """Answer `prepare`'s questions; the libraries are imported here and not in the watcher."""
    say = _speaker()
    try:
        say({"found": [_prepare_one(question) for question in json.loads(sys.stdin.read())]})
    except UsageError as error:
        say({"usage": one_line(str(error), 1000)})


def _prepare_one(question: Mapping[str, Any]) -> dict[str, Any] | None:
    """Device, number type, size and speed of a run; None if its model is to be left out."""
    parameters = question["parameters"]
    name, revision = parameters["model_name"], parameters.get("revision") or None
    embedded = name in sources.EMBEDDED and name not in sources.available_embedded()
    if embedded and question["skip_missing"]:
        print(f"replib: {name} is not installed, left out", file=sys.stderr)
        return None
    found = {"device": parameters["device"], "dtype": parameters.get("dtype", "float32")}
    found |= {"size": None, "speed": None}
    simple = found["device"] == "cpu" and found["dtype"] in sizing.BYTES and revision is None
    folder = size = None
    if simple and name in sources.EMBEDDED and sources.is_ready(name):
        # No need of the libraries, which take seconds. Of damaged weights preparing makes new ones.
        with contextlib.suppress(UsageError):
            folder = sources.unpacked_folder(name)
            size = sizing.folder_size(folder)
    if size is None:
        from replib.models.device import find_device, find_dtype
        from replib.models.load import prepare_model

        device = find_device(found["device"])
        found["device"] = str(device)
        found["dtype"] = str(find_dtype(found["dtype"], device)).removeprefix("torch.")

        def fits(n_params: int) -> None:
            size = sizing.Size(n_params, 0, 1)
            free = sizing.available_bytes(found["device"])
            sizing.estimate(size, found["dtype"], found["device"], free, None)

        folder = prepare_model(name, revision=revision, before_download=fits)
    if folder is not None:
        size = size or sizing.folder_size(folder)
        found |= {"size": asdict(size), "available": sizing.available_bytes(found["device"])}
        kind = found["dtype"], found["device"]
        found["speed"] = sizing.measure_speed(size.d_model, *kind, n_threads())
    if name not in sources.KNOWN and name not in sources.NETWORKS:
        found["architecture"] = sizing.architecture(folder)
        _check_architecture(name, revision, question["needs"])
    if against := parameters.get("against"):  # a second model
        from replib.models.load import prepare_model

        prepare_model(against)
    _check_files(question["paper"], parameters)
    return found


def _check_architecture(name: str, revision: str | None, needs: Sequence[str]) -> None:
    """Refuse a model without what the notebook `needs` (bookkit.run.plan.NEEDS)."""
    from replib.interventions.generation import check_cache
    from replib.interventions.network import check_blocks
    from replib.models.load import skeleton

    model, _ = skeleton(name, revision=revision)
    if model is None:
        return
    try:
        if "heads" in needs:
            check_blocks(model)
        if "cache" in needs:
            check_cache(model.original_model)
    except UsageError as error:
        raise UsageError(f"model {name}: {error}") from None


def _check_files(paper: str, parameters: Mapping[str, Any]) -> None:
    """Read the user's rows as the chapter will."""
    given = {key: path for key, path in parameters.items() if key.endswith("_file") and path}
    if not given:
        return
    from replib.models.load import load_model
    from replib.prompts.files import READERS

    readers = READERS | getattr(chapter_module(paper), "file_readers", dict)()
    if files := {key: path for key, path in given.items() if key in readers}:
        revision = parameters.get("revision") or None
        tokenizer = load_model(parameters["model_name"], revision=revision).tokenizer
        for key, path in files.items():
            readers[key](tokenizer, path)


if __name__ == "__main__":
    {"run": _run_child, "prepare": _prepare_child}[sys.argv[1]]()
