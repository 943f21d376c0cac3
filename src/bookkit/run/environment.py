"""The environment that runs have in common: variables, threads, versions."""

import contextlib
import importlib.metadata
import os
import platform

from replib.files import sha256_text
from replib.models.threads import n_threads

PACKAGES = ("replib", "torch", "transformer-lens", "transformers", "numpy", "scipy", "papermill")


def environment(runtime: str | None = None) -> dict[str, str]:
    """Our environment, with what makes a run quiet and repeatable."""
    # glibc takes fresh pages for every tensor and gives them back at once; page faults are dear on
    # a virtual machine: reading long prompts took twice as long. Tensors up to 1 GB are to reuse
    # theirs. Means nothing elsewhere.
    sizes = {"MMAP_THRESHOLD": 1 << 30, "TRIM_THRESHOLD": 1 << 30, "TOP_PAD": 64 << 20}
    environment = {f"MALLOC_{name}_": str(size) for name, size in sizes.items()} | os.environ
    environment.pop("MPLBACKEND", None)  # figures belong in the notebook
    environment |= {
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "REPLIB_THREADS": str(n_threads()),
    }
    if runtime is not None:
        environment["JUPYTER_RUNTIME_DIR"] = runtime
    return environment


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def environment_hash() -> str:
    """sha256 of the names and versions of all packages that are installed here."""
    installed = {
        f"{distribution.name.lower().replace('_', '-')}=={distribution.version}\n"
        for distribution in importlib.metadata.distributions()
    }
    return sha256_text("".join(sorted(installed)))
