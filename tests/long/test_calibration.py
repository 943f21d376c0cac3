"""Part of `make calibration`, and what its words mean."""

import inspect
import math

import pytest
import torch
from calibration import CASES, Case, region, verdict

from replib import metrics
from replib.chapters.successor_heads import ov_circuit as successors
from replib.metrics import max_statistic_pvalues

RUNS = 200  # of what costs milliseconds
# One or two of each kind, those whose simulation costs little.
QUICK = [
    *(("wilson", f"{n} prompts, true share {p}") for n in (20, 100) for p in (0.5, 0.98)),
    ("seeds_mean", "5 seeds, normal"),
    ("seeds_difference", "5 and 3 seeds, normal, spreads 1 and 4"),
    ("bootstrap", "100 prompts, normal"),
    ("logistic", "60 countries × 2 prompts, 60 cities, both clustered"),
    *(("Null, value > q95", f"{n} draws") for n in (20, 1000)),
    ("Null.pvalue", "20 draws"),
    ("max_statistic_pvalues", "9 heads, 12 prompts"),
    ("overlap_null, value > q95", "3 stages of 6 heads each, of 9 a layer"),
    ("spearman, Null.pvalue", "14 items, half of them tied"),
    ("atlas.overlap_null, p < 0.05", "roles of 6 and 18 heads, of 9 a layer"),
]


@pytest.mark.parametrize(("method", "simulated"), QUICK)
def test_it_is_as_it_says(method, simulated):
    (case,) = (c for c in CASES if (c.method, c.simulated) == (method, simulated))
    assert not case.known
    assert verdict(case.level, case.share(RUNS), RUNS) != "no"


def test_every_interval_and_null_has_a_case():
    made = {
        name
        for module in (metrics, successors)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if "generator" in inspect.signature(function).parameters
        or "Interval" in str(inspect.signature(function).return_annotation)
    }
    assert {"wilson", "bootstrap", "spearman", "macro_interval", "shuffled_null"} <= made
    missing = {name for name in made if not any(case.method.startswith(name) for case in CASES)}
    assert missing == set()
    assert len({(case.method, case.simulated) for case in CASES}) == len(CASES)


def test_the_region_is_that_of_the_binomial():
    low, high = region(0.95, 2000)
    half = 3.29 * math.sqrt(0.95 * 0.05 / 2000)  # the normal approximation at 99.9%
    assert low == pytest.approx(0.95 - half, abs=0.002)
    assert high == pytest.approx(0.95 + half, abs=0.002)
    assert [verdict(0.95, share, 2000) for share in (0.92, 0.94, 0.96, 0.98)] == [
        *("no", "yes", "yes", "conservative")
    ]
    assert [verdict(0.05, share, 2000) for share in (0.02, 0.04, 0.06, 0.08)] == [
        *("conservative", "yes", "yes", "no")
    ]


def test_an_interval_that_is_too_narrow_is_found():
    def of_90_percent(generator):
        values = generator.normal(size=20)
        return abs(values.mean()) <= 1.645 / math.sqrt(20)

    case = Case("a 90% interval", "20 normal values", 0.95, of_90_percent)
    assert verdict(0.95, case.share(2000), 2000) == "no"


def test_a_test_that_forgets_how_many_heads_there_are_is_found():
    def one_by_one(generator):
        effect = torch.from_numpy(generator.normal(size=(10, 4, 20)))
        p = [max_statistic_pvalues(x[None, None], generator, 40) for x in effect.flatten(0, 1)]
        return min(map(float, p)) < 0.05

    case = Case("40 heads one by one", "20 prompts", 0.05, one_by_one)
    share = case.share(20)
    assert share > 0.5  # 1 − 0.95^40 = 0.87
    assert verdict(0.05, share, 20) == "no"
