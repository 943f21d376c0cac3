"""Models from the Hugging Face hub, asked for by name and revision."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from replib.errors import UsageError, first_line
from replib.models.sources import KNOWN, Place, find_gguf
from replib.models.unpack import TerminalBar

HUB_SECONDS = 8.0  # longest wait for the hub's first answer
HUB_FILES = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
IS_ADAPTER = (
    "is an adapter alone, no model; merge it into the one that it was trained on "
    "(in peft: merge_and_unload, then save_pretrained)"
)


def check_revision(name: str, revision: str | None) -> None:
    if revision is not None and (name in KNOWN or Path(name).expanduser().is_dir()):
        raise UsageError(f"revision {revision!r}: only a Hugging Face id has one, not {name!r}")


def from_hub(
    name: str, revision: str | None, before_download: Callable[[int], None] | None
) -> Place:
    """A hub model's snapshot at one commit: safetensors, configuration and tokenizer only. Without
    a network the copy in the Hugging Face cache is used, if there is one."""
    known = f"known models: {', '.join(KNOWN)}; or a local folder, or a Hugging Face id"
    at = "" if revision is None else f" at revision {revision!r}"
    unknown = f"model {name!r} is not known, and"
    api = huggingface_hub.HfApi()
    try:
        info = _within(HUB_SECONDS, lambda: api.model_info(name, revision=revision, timeout=5))
    except HFValidationError:
        raise UsageError(f"{unknown} there is no such folder; {known}") from None
    except RevisionNotFoundError:
        raise UsageError(f"model {name!r} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UsageError(f"{unknown} not on the hub; {known}") from None
    except Exception as error:
        away = f"the hub could not be reached to look for it{at}"
        try:
            folder = _snapshot(name, revision, local_files_only=True)
            if not (folder / "adapter_config.json").exists():
                find_gguf(folder)
        except Exception as lack:
            cached = Path(
                huggingface_hub.constants.HF_HUB_CACHE, f"models--{name}".replace("/", "--")
            )
            if isinstance(lack, UsageError) or any(cached.glob("snapshots/*/*")):
                problem = first_line(lack) if isinstance(lack, UsageError) else "files are missing"
                raise UsageError(
                    f"model {name!r} is only in part in the Hugging Face cache ({problem}), and "
                    f"{away}; run it with a network, or: hf download {name}"
                ) from None
            reason = f"({type(error).__name__}: {first_line(error)})"
            raise UsageError(f"{unknown} {away} {reason}; {known}") from None
    else:
        files = [sibling.rfilename for sibling in info.siblings or []]
        if not any(fnmatch(file, HUB_FILES[0]) for file in files):
            if "adapter_config.json" in files:
                raise UsageError(f"model {name!r}{at} {IS_ADAPTER}")
            raise UsageError(f"model {name!r}{at} has no safetensors weights on the hub")
        if before_download is not None and getattr(info, "safetensors", None) is not None:
            before_download(info.safetensors.total)
        try:
            folder = _snapshot(name, revision, local_files_only=False)
        except GatedRepoError:
            terms = "accept its terms on the hub and log in (hf auth login)"
            raise UsageError(f"model {name!r} is gated: {terms}") from None
        except Exception as error:
            raise UsageError(f"model {name!r}: download failed: {first_line(error)}") from error
    source, commit = f"Hugging Face hub, {name}", folder.name  # a snapshot is named by its commit
    return Place(source, folder=folder, revision=commit)


def _snapshot(name: str, revision: str | None, *, local_files_only: bool) -> Path:
    """The folder of the hub model's files, downloaded where that is allowed and needed."""
    folder = huggingface_hub.snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(HUB_FILES),
        ignore_patterns=["*/*"],
        tqdm_class=TerminalBar,
        local_files_only=local_files_only,
    )
    return Path(folder)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result or exception, or TimeoutError when there is neither in time. Name servers
    and dropped packets have time limits of their own, which are too long to wait for."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # the program does not wait for it to end
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answer.result()
