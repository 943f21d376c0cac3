"""Training steps per second of small Mamba and Mamba-2 networks: the library's scan and ours.

    make bench-training

Every contender takes the same steps (forward, backward, AdamW) on the same strings, on one thread,
in short rounds that alternate between contenders, so that whatever else the machine does hits all
of them. Written to benchmarks/training.json, from which the book's page on performance is made.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path

import torch
import transformers
from bench import processor

from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.scans import fast_scans
from replib.chapters.copying_mamba.strings import answer_logits, copy
from replib.chapters.copying_mamba.training import one_thread
from replib.chapters.copying_mamba.training_grid import BATCH

OUT = Path(__file__).parent / "training.json"
LENGTHS = (20, 64)  # letters: 43 and 131 tokens
CHUNKS = (16, 32, 64)  # tokens; the library pads Mamba-2's sequences to whole chunks (default 256)


class Contender:
    """A network of its own, trained with one scan."""

    def __init__(
        self, architecture: str, scan: Callable[[torch.nn.Module], AbstractContextManager]
    ):
        self.network, self.scan = build(architecture, seed=0).train(), scan
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)

    def steps_per_second(self, length: int, steps: int) -> float:
        generator = torch.Generator().manual_seed(length)
        batches = [copy(BATCH, length, generator) for _ in range(steps)]
        with self.scan(self.network):
            start = time.perf_counter()
            for strings in batches:
                logits = answer_logits(self.network, strings).flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits, strings.answers.flatten())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            return steps / (time.perf_counter() - start)


def library(chunk: int | None = None, flag: str = "") -> Callable:
    """The library's own scan, with a chunk size (Mamba-2) or one of its switches (Mamba)."""

    def scan(network: torch.nn.Module) -> AbstractContextManager:
        for layer in network.backbone.layers:
            if chunk is not None:
                layer.mixer.chunk_size = chunk
            if flag:
                setattr(layer.mixer, flag, True)
        return nullcontext()

    return scan


def contenders(architecture: str) -> dict[str, Contender]:
    """By name; ours is the last one."""
    if architecture == "mamba":
        scans = {"library": library()}
        if importlib.util.find_spec("mambapy"):
            scans["library, mambapy"] = library(flag="use_mambapy")
    else:
        scans = {"library, chunk 256 (its default)": library(256)}
        scans |= {f"library, chunk {chunk}": library(chunk) for chunk in CHUNKS}
    scans["ours"] = fast_scans
    return {name: Contender(architecture, scan) for name, scan in scans.items()}


def bench(rounds: int, seconds: float, say: Callable[[str], None] = print) -> dict:
    """The report; each round of a contender takes about `seconds`."""
    rows = []
    for architecture in ("mamba", "mamba2"):
        for length in LENGTHS:
            some = contenders(architecture)
            steps = {
                name: max(1, round(seconds * contender.steps_per_second(length, 2)))
                for name, contender in some.items()
            }
            rates: dict[str, list[float]] = {name: [] for name in some}
            for _ in range(rounds):
                for name, contender in some.items():
                    rates[name].append(contender.steps_per_second(length, steps[name]))
            ours = rates["ours"]
            for name, found in rates.items():
                ratios = [own / other for own, other in zip(ours, found, strict=True)]
                row = {
                    "architecture": architecture,
                    "tokens": 2 * length + 3,
                    "contender": name,
                    "steps_per_second": statistics.median(found),
                    "ours_is_faster_by": statistics.median(ratios),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                }
                rows.append(row)
                say(
                    f"{architecture:7} {row['tokens']:4} tokens  {name:34} "
                    f"{row['steps_per_second']:6.2f} steps/s; ours / it: "
                    f"{row['ours_is_faster_by']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})"
                )
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "batch": BATCH,
        "rounds": rounds,
        "chapter": stored.PAPER,
        "code_sha256": stored.code_sha256(),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender's rounds")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with one_thread():
        report = bench(options.rounds, options.seconds)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
