"""The three things that the chapter's page can be about: networks that were trained and stored,
networks set by hand, and networks with the weights that training starts with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from replib.chapters.icl_gradient_descent import planted
from replib.chapters.icl_gradient_descent.stored import TRAINED, needed
from replib.chapters.icl_gradient_descent.training import Course, Trained, read, start
from replib.chapters.icl_gradient_descent.training_grid import STUDIES, Cell
from replib.errors import UsageError
from replib.models.sources import network_info

PLANTED, UNTRAINED = "planted-icl-gd", "untrained-icl-gd"
NAMES = (TRAINED, PLANTED, UNTRAINED)


@dataclass(frozen=True)
class Subject:
    """All networks of a page, by study, one for each seed."""

    name: str
    studies: Mapping[str, list[Trained]]

    def networks(self, study: str) -> list[nn.Module]:
        return [one.network for one in self.studies[study]]

    @property
    def is_set_by_hand(self) -> bool:
        """Does the page have weights set by hand, as claim 10.1 needs? The page of random weights
        shows what comes out where nobody set or trained any."""
        return self.name != UNTRAINED

    def info(self, root: Path) -> dict[str, Any]:
        """What the record says of the model; sizes are those of the one linear layer."""
        layer = self.studies["linear"][0].network
        size = sum(weight.numel() for weight in layer.parameters())
        sizes = {"n_params": size, "n_layers": 1, "n_heads": 1, "dtype": "float32"}
        return network_info(self.name, needed(root, {}, self.name), **sizes)


def load(root: Path, name: str) -> Subject:
    """The networks of a page; UsageError for another name, NotStored for trained networks that are
    missing or altered."""
    if name not in NAMES:
        raise UsageError(
            f"model {name!r}: this chapter trains its own networks; choose {', '.join(NAMES)}"
        )
    one = {
        TRAINED: lambda study, seed: read(root, Cell(study, seed)),
        PLANTED: planted.course,
        UNTRAINED: _untrained,
    }[name]
    studies = {s: [one(s, seed) for seed in study.seeds] for s, study in STUDIES.items()}
    return Subject(name, studies)


def _untrained(study: str, seed: int) -> Trained:
    """First weights, whose curve is flat."""
    course = Course(start(STUDIES[study], seed))
    course.add(STUDIES[study].steps)
    return course.trained(seed)
