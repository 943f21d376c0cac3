"""What a job of a workflow depends on, and the stamps that say it is done; used by the Snakefiles.

Snakemake watches files and parameters. Package versions and weights are neither, so their marks are
given to it as parameters.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from bookkit.project import chapter_folder
from bookkit.run.plan import Run
from replib.chapters.context_knob.cards import NoAdapter
from replib.chapters.copying_mamba.training_grid import NoCell
from replib.hashes import library_files, pins_hash
from replib.models.sources import SOURCES

RUN = Path(__file__).parent / "run"
# What keeps one chapter of a model from being planned, without being a mistake.
NOT_YET = (NoAdapter, NoCell)


def lock(root: Path) -> str | None:
    """sha256 of the pinned packages, None without a pin; the models' packages are in `weights`."""
    return pins_hash(root / "requirements.txt")


def weights(name: str) -> str:
    """What tells one set of weights from another without reading them."""
    if name in SOURCES:
        source = SOURCES[name]
        sizes = [[path.name, path.stat().st_size] for path in source.paths() or ()]
        return json.dumps([source.sha256, source.requirements, sizes])
    if Path(name).is_dir():
        files = [path for path in sorted(Path(name).rglob("*")) if path.is_file()]
        return json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    return name


def inputs(run: Run) -> list[str]:
    """The files that a run reads: notebook, claims, modules, stored trainings, the user's own."""
    folder = chapter_folder(run.chapter.root, run.chapter.paper)
    found = [folder / f"{folder.name}.ipynb", folder / "claims.yaml"]
    found += library_files(run.chapter.notebook, *run.chapter.modules(run.model))
    # They do not change the numbers, but what a record holds.
    found += sorted(RUN.glob("*.py"))
    found += sorted((folder / "adapters").glob(f"{run.folder.name}/*/*"))
    found += sorted((folder / "checkpoints").glob("*/*"))
    return [str(path) for path in [*found, *run.files.values()]]


def refusal(stamp: Path) -> str:
    """Why a run was refused, as its stamp has it; empty if it was not."""
    return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""


def drop_stale_stamps(stamps: Iterable[tuple[Path, Path]]) -> None:
    """Remove every stamp, (stamp, the run's folder), that says nothing.

    A stamp says that the record was made by its job, or holds the reason of a refusal. Without the
    record, or with one that was written later by hand, it says nothing.
    """
    for stamp, folder in stamps:
        record = folder / "record.json"
        if (
            stamp.exists()
            and not refusal(stamp)
            and not (record.exists() and record.stat().st_mtime <= stamp.stat().st_mtime)
        ):
            stamp.unlink()
