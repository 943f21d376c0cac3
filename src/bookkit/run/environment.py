"""The environment that runs have in common: variables, threads, versions."""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replib.files import packaged_file, sha256_text
from replib.models.threads import n_threads

PACKAGES = ("replib", "torch", "transformer-lens", "transformers", "numpy", "scipy", "papermill")


def environment() -> dict[str, str]:
    """Our environment, with what makes a run quiet and repeatable."""
    # glibc takes fresh pages for every tensor and gives them back at once; page faults are dear on
    # a virtual machine: reading long prompts took twice as long. Tensors up to 1 GB are to reuse
    # theirs. Means nothing elsewhere.
    sizes = {"MMAP_THRESHOLD": 1 << 30, "TRIM_THRESHOLD": 1 << 30, "TOP_PAD": 64 << 20}
    environment = {f"MALLOC_{name}_": str(size) for name, size in sizes.items()} | os.environ
    for name in ("MPLBACKEND", "PYTHONSTARTUP"):  # figures belong in the notebook
        environment.pop(name, None)
    environment |= {
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "REPLIB_THREADS": str(n_threads()),
    }
    return environment


def kernel_environment(folder: Path) -> dict[str, str]:
    """The same for a kernel, without what the user set up for kernels of their own: IPython's
    profile and start-up files, a kernel of the same name, matplotlib's settings. What takes their
    place is written into `folder`, an empty one. PYTHONPATH stays: packages may be found by it."""
    kernel = folder / "kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    words = [sys.executable, "-m", "bookkit.run.kernel", "-f", "{connection_file}"]
    about = {"argv": words, "display_name": "Python 3", "language": "python"}
    kernel.write_text(json.dumps(about), encoding="utf-8")
    return environment() | {
        "JUPYTER_PATH": str(folder),  # comes before all others
        "JUPYTER_RUNTIME_DIR": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "MATPLOTLIBRC": str(packaged_file("matplotlib/mpl-data/matplotlibrc")),
    }


def kernel_version(notebook: Mapping[str, Any]) -> str:
    """Which kernel ran a notebook, as it says itself."""
    about = notebook["metadata"].get("language_info", {})
    version = importlib.metadata.version("ipykernel")
    return f"{Path(sys.executable).name} {about.get('version', '')}, ipykernel {version}"


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
