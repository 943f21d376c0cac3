"""Stored adapters without torch: where they are, and whether they are whole.

An adapter is a folder in the format of the package peft (`adapter_model.safetensors` and
`adapter_config.json`) with a card beside them, `training.json`: the model it belongs to, seed,
sha256 of the weights, hashes of the data and of the code, settings, training curve.
`replib train` writes it (`replib.finetuning`); `replib.adapters` puts it on a model.
"""

import json
from pathlib import Path
from typing import Any

from replib.errors import UsageError
from replib.files import sha256_file
from replib.hashes import code_hash
from replib.models.sources import model_slug

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


class NoAdapter(UsageError):
    """There is no usable adapter; the line says how to make it."""


def code_sha256() -> str:
    """One hash of the code that makes the rows and trains on them."""
    return code_hash(CODE, LEFT)


def adapter_folder(root: Path, paper: str, model: str, intent_format: str, seed: int) -> Path:
    """`root`/notebooks/`paper`.adapters/`model's folder name`/`format`-`seed`."""
    folder = root / "notebooks" / paper / "adapters" / model_slug(model)
    return folder / f"{intent_format}-{seed}"


def check_adapter(
    root: Path, paper: str, model: str, model_sha256: str | None, intent_format: str, seed: int
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, card, peft's configuration) of a stored adapter whose weights are those of its card.

    For which weights it was made is checked only if their hash is given.

    Raises:
        NoAdapter: it is missing, altered, or made for other weights.
    """
    folder = adapter_folder(root, paper, model, intent_format, seed)
    again = (
        f"make it with: replib train {paper} --model {model} --format {intent_format} --seed {seed}"
    )
    what = f"adapter {folder.parent.name}/{folder.name} of {paper}"
    absent = [name for name in (WEIGHTS, CONFIG, CARD) if not (folder / name).is_file()]
    if absent:
        raise NoAdapter(f"{what} is missing ({absent[0]} is not in {folder}); {again}")
    try:
        card = json.loads((folder / CARD).read_text())
        config = json.loads((folder / CONFIG).read_text())
        stored, made_for = card["sha256"], card["model_sha256"]
        card["code_sha256"], card["curve"]["validation"], config["lora_alpha"] / config["r"]
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise NoAdapter(f"{what}: {CARD} or {CONFIG} cannot be read ({reason}); {again}") from None
    found = sha256_file(folder / WEIGHTS)
    if found != stored:
        raise NoAdapter(
            f"{what} was altered: the sha256 of {WEIGHTS} is {found[:12]}…, not "
            f"{str(stored)[:12]}… as its card says; {again}"
        )
    if model_sha256 is not None and made_for != model_sha256:
        raise NoAdapter(
            f"{what} was trained on other weights (sha256 {str(made_for)[:12]}…, these are "
            f"{model_sha256[:12]}…); {again}"
        )
    return folder, card, config
