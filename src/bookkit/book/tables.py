"""Tables of claims × models, made from records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bookkit.book.html import macro
from bookkit.book.runs import Run, by_paper, of_papers
from bookkit.project import words

TEMPLATE = "tables.html"


@dataclass(frozen=True)
class Row:
    """One claim of a paper: for each column the run and its claim, where there are any."""

    id: str
    cells: list[tuple[Run | None, Mapping[str, Any] | None]]

    @property
    def having(self) -> list[tuple[Run, Mapping[str, Any]]]:
        return [cell for cell in self.cells if cell[1]]

    @property
    def statement(self) -> str:
        return self.having[0][1]["statement"]

    @property
    def outcomes(self) -> list[str]:
        return [claim["outcome"] for _, claim in self.having]


@dataclass(frozen=True)
class Group:
    """Runs of one paper in a table with a column for each of the models."""

    runs: Sequence[Run]
    models: list[str]

    @property
    def paper(self) -> str:
        return self.runs[0].paper

    @property
    def title(self) -> str:
        return self.runs[0].record["title"]

    @property
    def about(self) -> str:
        """For a table's name, which no other table on a page may have."""
        return f"{self.title} on {words(self.models)}"

    @cached_property
    def rows(self) -> list[Row]:
        """Every claim once, in the order in which the records name them."""
        of_model = {run.model: run for run in self.runs}
        ids = dict.fromkeys(claim["id"] for run in self.runs for claim in run.record["claims"])
        columns = [of_model.get(model) for model in self.models]
        return [Row(id, [(run, run and run.claim(id)) for run in columns]) for id in ids]


def _models_and_controls(runs: Sequence[Run]) -> list[Group]:
    models, controls = ([run for run in runs if run.control == is_one] for is_one in (False, True))
    return [Group(some, [run.model for run in some]) for some in (models, controls) if some]


def _papers(runs: Sequence[Run]) -> list[Group]:
    """The papers of these runs, each with the same columns."""
    models = list(dict.fromkeys(run.model for run in runs))
    return [Group(members, models) for members in by_paper(runs).values()]


def outcome_tables(runs: Sequence[Run], prefix: str) -> str:
    """Outcomes of one paper on models, and apart from them on controls."""
    return macro(TEMPLATE, "outcomes", _models_and_controls(runs), prefix)


def transfer(runs: Sequence[Run]) -> str:
    """Claims of all papers × models, replications apart; controls are left out."""
    tested = [run for run in of_papers(runs) if not run.control]
    own = [run for run in tested if run.scope == "replication"]
    others = [run for run in tested if run.scope != "replication"]
    return macro(TEMPLATE, "transfer", _papers(own), _papers(others))


def scorecard(runs: Sequence[Run]) -> str:
    """Outcomes and numbers of every paper, for a page at the root of the book."""
    papers = by_paper(of_papers(runs)).values()
    found = [(members, _models_and_controls(members)) for members in papers]
    return macro(TEMPLATE, "scorecard", found)
