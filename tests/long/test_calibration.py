"""Part of `make calibration`."""

import inspect

import pytest
from calibration import CASES

from replib import metrics
from replib.chapters.successor_heads import ov_circuit as successors

RUNS = 200  # of what costs milliseconds
# One or two of each kind, those whose simulation costs little.
QUICK = [
    *(("proportion", f"{n} prompts, true share {p}") for n in (20, 100) for p in (0.5, 0.98)),
    ("seeds_mean", "5 seeds, normal"),
    ("seeds_mean of shares", "5 seeds, all or nothing, 90% learn"),
    ("seeds_difference", "5 and 3 seeds, normal, spreads 1 and 4"),
    ("bootstrap", "20 prompts, normal"),
    ("bootstrap", "12 prompts, skewed (exponential)"),
    ("bootstrap", "5 templates of 1 to 14 prompts that correlate by 0.5"),
    ("macro_interval", "classes of 7, 12, 26 and 100 successions, share right 0.9"),
    ("logistic", "60 countries × 2 prompts, 60 cities, both clustered"),
    *(("Null, value > q95", f"{n} draws") for n in (20, 1000)),
    ("Null.pvalue", "20 draws"),
    ("max_statistic_pvalues", "9 heads, 12 prompts, skewed with mean 0 (exponential)"),
    ("drawn_overlap_null, value > q95", "3 stages of 6 heads each, of 9 a layer"),
    ("spearman, Null.pvalue", "14 items, half of them tied"),
    ("atlas.overlap_null, p < 0.05", "roles of 6 and 18 heads, of 9 a layer"),
]


@pytest.mark.parametrize(("method", "simulated"), QUICK)
def test_it_is_as_it_says(method, simulated):
    (case,) = (c for c in CASES if (c.method, c.simulated) == (method, simulated))
    row, _ = case.row(RUNS)
    assert row[-1] in ("yes", "conservative"), row


INTERVALS = (metrics.Estimate, tuple[float, float])


def test_every_interval_and_null_has_a_case():
    made = {
        name
        for module in (metrics, successors)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if "generator" in inspect.signature(function).parameters
        or inspect.signature(function).return_annotation in INTERVALS
    }
    assert {"proportion", "bootstrap", "spearman", "macro_interval", "shuffled_null"} <= made
    missing = {name for name in made if not any(case.method.startswith(name) for case in CASES)}
    assert missing == set()
    assert len({(case.method, case.simulated) for case in CASES}) == len(CASES)
