"""The chapter's stored adapters: where they are, whether they are whole, and how to train them.

An adapter is a folder in the format of the package peft (`adapter_model.safetensors` and
`adapter_config.json`) with a card beside them, `training.json`: the model it belongs to, seed,
sha256 of the weights, hashes of the data and of the code, settings, training curve. `training`
writes it, `adapters` puts it on a model.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from replib.chapters.stored import NotStored, check_weights, make_with, reading
from replib.errors import UsageError
from replib.hashes import code_hash
from replib.models.sources import EMBEDDED, MADE_IN_MEMORY, SOURCES, absolute_model, model_slug

PAPER = "context-knob"
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "training.json"
INTENT_FORMATS = ("instruction", "weight")  # each model has adapters of both (`intents.FORMATS`)
# What decides the weights, given the pinned packages and a model; its weights are in each card.
CODE = "import replib.chapters.context_knob.training as t; t._make_rows, t._train"
LEFT = (
    "replib.models.load.load_model",
    "replib.models.load.load_bare",
    "replib.models.bridge.model_info",
    "replib.interventions.generation.MAX_TOKENS",  # batches change no number but for rounding
)


def code_sha256() -> str:
    """One hash of the code that makes the rows and trains on them."""
    return code_hash(CODE, LEFT)


def adapters_folder(root: Path, model: str) -> Path:
    """The folder with all adapters of one model."""
    return root / "notebooks" / PAPER / "adapters" / model_slug(model)


def adapter_folder(root: Path, model: str, intent_format: str, seed: int) -> Path:
    return adapters_folder(root, model) / f"{intent_format}-{seed}"


def check_adapter(
    root: Path, model: str, model_sha256: str | None, intent_format: str, seed: int
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, card, peft's configuration) of a stored adapter whose weights are those of its card.
    Raises NotStored if it is missing, altered, or (where their hash is given) for other weights."""
    folder = adapter_folder(root, model, intent_format, seed)
    again = make_with(PAPER, model=model, format=intent_format, seed=seed)
    what = f"adapter {folder.parent.name}/{folder.name} of {PAPER}"
    absent = [name for name in (WEIGHTS, CONFIG, CARD) if not (folder / name).is_file()]
    if absent:
        raise NotStored(f"{what} is missing ({absent[0]} is not in {folder}); {again}")
    with reading(f"{what}: {CARD} or {CONFIG}", again):
        card = json.loads((folder / CARD).read_text())
        config = json.loads((folder / CONFIG).read_text())
        stored, made_for = card["sha256"], card["model_sha256"]
        card["code_sha256"], card["curve"]["validation"], config["lora_alpha"] / config["r"]
    check_weights(folder / WEIGHTS, stored, what, WEIGHTS, again)
    if model_sha256 is not None and made_for != model_sha256:
        raise NotStored(
            f"{what} was trained on other weights (sha256 {str(made_for)[:12]}…, these are "
            f"{model_sha256[:12]}…); {again}"
        )
    return folder, card, config


# --- What the workshop asks -----------------------------------------------------------------------


def needed(root: Path, parameters: Mapping[str, Any], model: str) -> dict[str, str]:
    """The adapters that a run reads, with the sha256 of their weights; a model made in memory has
    none. Raises NotStored, and UsageError where `adapter_seeds` is no list of seeds."""
    if "adapter_seeds" not in parameters or model in MADE_IN_MEMORY:
        return {}
    seeds = parameters["adapter_seeds"]
    if not seeds:
        raise UsageError("parameter adapter_seeds is empty; give at least one, such as [1]")
    if not (isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**63 for s in seeds)):
        raise UsageError(f"parameter adapter_seeds is {seeds!r}; give seeds, such as [1]")
    sha256 = SOURCES[model].sha256 if model in SOURCES else None
    return {
        f"adapter {name}-{seed}": check_adapter(root, model, sha256, name, seed)[1]["sha256"]
        for name in INTENT_FORMATS
        for seed in seeds
    }


def files(root: Path, model: str) -> list[Path]:
    return sorted(adapters_folder(root, model).glob("*/*"))


def add_options(parser: ArgumentParser) -> None:
    parser.description = "Train the adapters of one model and seed, in place of the old."
    parser.add_argument("--model", help=f"{', '.join(EMBEDDED)}, a folder, a hub id")
    parser.add_argument("--seed", type=int, metavar="S", help="0, 1, 2, ...")
    parser.add_argument(
        "--format", choices=INTENT_FORMATS, help="how the intent is written; default: each in turn"
    )


def trainings(root: Path, options: Namespace) -> dict[str, Callable[[Callable], Path]]:
    """The adapters that were asked for, by name: functions that train one and return its folder."""
    for name in ("model", "seed"):
        if getattr(options, name) is None:
            raise UsageError(f"replib train {PAPER} needs --{name}")
    model, seed = options.model, options.seed
    if seed < 0:
        raise UsageError(f"--seed is {seed}; give a whole number, 0 or more")
    if model in MADE_IN_MEMORY:
        raise UsageError(f"model {model!r} is made in memory and needs no adapter")
    path = absolute_model(model)

    def train(intent_format: str, say: Callable[[str], None]) -> Path:
        from replib.chapters.context_knob.training import train_adapter

        return train_adapter(root, path, intent_format, seed, options.device, say)

    formats = [options.format] if options.format else INTENT_FORMATS
    return {f"{model}, {name}-{seed}": partial(train, name) for name in formats}
