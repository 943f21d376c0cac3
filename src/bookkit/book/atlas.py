"""The head atlas: a page for each model that says which heads play which role in which chapter.

It is made from the `heads` of the records. Two roles are compared by the heads that they share. The
null draws each role's heads at random within their layers, because heads of one kind tend to stand
in the same layers. Its distribution is exact: hypergeometric in a layer, added up over layers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from bookkit.book.html import macro, png
from replib.claims.file import ROLES
from replib.errors import UsageError

Head = tuple[int, int]
_LETTERS = dict(zip(ROLES, "MNIUDPGCYXSO", strict=True))
ALPHA = 0.05


@dataclass(frozen=True)
class Role:
    """The heads of one role in one model, as a record has them."""

    name: str
    heads: frozenset[Head]
    rule: str
    paper: str

    @property
    def letter(self) -> str:
        return _LETTERS[self.name]

    @property
    def labels(self) -> str:
        return ", ".join(map(_label, sorted(self.heads))) or "none"


@dataclass(frozen=True)
class Overlap:
    """Two roles of one model."""

    a: str
    b: str
    common: int
    jaccard: float
    expected: float  # by the null
    pvalue: float  # of as many common heads, or more


def roles_of(records: Sequence[Mapping[str, Any]]) -> list[Role]:
    """All roles in the records of one model, in the order of ROLES.

    Raises UsageError if two chapters give one role, or a head lies outside the model.
    """
    found: dict[str, Role] = {}
    for record in records:
        n_layers, n_heads = record["model"].get("n_layers"), record["model"].get("n_heads")
        if record["heads"] and (n_layers is None or n_heads is None):
            raise UsageError(
                f"{record['paper']} on {record['model']['name']}: the record has heads, but not how"
                " many layers and heads the model has"
            )
        for name, entry in record["heads"].items():
            if name in found:
                raise UsageError(
                    f"role {name} of {record['model']['name']} is in the records of both "
                    f"{found[name].paper} and {record['paper']}"
                )
            heads = frozenset((layer, head) for layer, head in entry["heads"])
            if any(layer >= n_layers or head >= n_heads for layer, head in heads):
                raise UsageError(f"role {name} of {record['paper']}: a head outside the model")
            found[name] = Role(name, heads, entry["rule"], record["paper"])
    return [found[name] for name in ROLES if name in found]


def overlap_null(a: frozenset[Head], b: frozenset[Head], n_heads: int) -> np.ndarray:
    """P(k common heads), k = 0, 1, ..., if the heads of `b` were drawn anew within their layers."""
    in_a, in_b = (Counter(layer for layer, _ in heads) for heads in (a, b))
    total = np.ones(1)
    for layer in in_a.keys() & in_b.keys():
        most = min(in_a[layer], in_b[layer])
        here = stats.hypergeom.pmf(np.arange(most + 1), n_heads, in_a[layer], in_b[layer])
        total = np.convolve(total, here)
    return total


def overlaps(roles: Sequence[Role], n_heads: int) -> list[Overlap]:
    """Every pair of roles that have heads in a layer of both, and so could share some."""
    found = []
    for a, b in combinations([role for role in roles if role.heads], 2):
        null = overlap_null(a.heads, b.heads, n_heads)
        if len(null) == 1:
            continue
        common = len(a.heads & b.heads)
        jaccard = common / len(a.heads | b.heads)
        expected = float(null @ np.arange(len(null)))
        pvalue = min(1.0, float(null[common:].sum()))
        found.append(Overlap(a.name, b.name, common, jaccard, expected, pvalue))
    return found


def _label(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"


def _by_head(roles: Sequence[Role]) -> dict[Head, list[Role]]:
    """The roles of each head that plays any, in the order of heads."""
    heads = sorted({head for role in roles for head in role.heads})
    return {head: [role for role in roles if head in role.heads] for head in heads}


def page(model: str, records: Sequence[Mapping[str, Any]], link: str = "../chapters/") -> str:
    """The model's page, as MyST. Its figure is `<model>.png` beside it."""
    roles, size = roles_of(records), records[0]["model"]
    playing = {_label(head): of_head for head, of_head in _by_head(roles).items()}
    found = overlaps(roles, size["n_heads"])
    return macro("atlas.html", "page", model, link, size, roles, playing, found, ALPHA)


def figure(records: Sequence[Mapping[str, Any]]) -> bytes:
    """The grid of heads with letters, as PNG."""
    n_layers, n_heads = records[0]["model"]["n_layers"], records[0]["model"]["n_heads"]
    fig = Figure(figsize=(7, 0.9 + 0.24 * n_layers), layout="tight")
    ax = fig.subplots()
    ax.set(xlim=(-0.5, n_heads - 0.5), ylim=(n_layers - 0.5, -0.5), xlabel="head", ylabel="layer")
    ax.set(xticks=range(n_heads), yticks=range(0, n_layers, 2 if n_layers > 12 else 1))
    ax.set_xticks(np.arange(-0.5, n_heads), minor=True)
    ax.set_yticks(np.arange(-0.5, n_layers), minor=True)
    ax.grid(which="minor", color="0.85", linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    for (layer, head), roles in _by_head(roles_of(records)).items():
        text = "".join(role.letter for role in roles)
        ax.text(head, layer, text, ha="center", va="center", fontsize=9, fontweight="bold")
    return png(fig, dpi=150)
