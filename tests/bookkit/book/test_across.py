"""Claims across models: families, the numbers of their rules by hand, and what is missing."""

from pathlib import Path
from typing import Any

import pytest
from small_book import ROOT

from bookkit.book.across import NUMBERS, compare, family
from bookkit.book.runs import Run
from replib.claims.file import read_claims
from replib.claims.rules import names_in
from replib.errors import UsageError

RULE = {"text": "By size.", "gate": "sizes >= 3", "gate_text": "three sizes of one family"}
RULE |= {"holds_if": "growth_low > 0 and growth > 0.1", "fails_if": "growth_high < 0.1"}
SHARE = {"text": "Share.", "gate": "models >= 2", "gate_text": "two models"}
SHARE |= {"holds_if": "share_low > 0.5", "fails_if": "share_high < 0.5"}


def run(name: str, size: int, value: float | None, *, half: float = 0.05, rule: Any = RULE, **more):
    """A run of a paper whose claim 3.2 compares what each model memorised."""
    claim = {"id": "3.2", "statement": "Larger is more.", "reported": None, "across": ["memorised"]}
    claim |= {"source": {"mark": "none", "where": None}, "decision_rule": rule, "measured": None}
    claim |= more
    interval = None if value is None else [value - half, value + half]
    measurements = {"memorised": {"value": value, "interval": interval, "n": 20, "unit": ""}}
    measurements["bar"] = {"value": 0.2, "interval": None, "n": None, "unit": ""}
    record = {"paper": "facts", "title": "Facts", "arxiv": "2001.00001", "claims": [claim]}
    record |= {"model": {"name": name, "n_params": size}, "measurements": measurements}
    return Run("facts", name.replace("/", "--"), record, "", Path())


def sized(*values: float | None, **options: Any) -> list[Run]:
    """Pythia in that many sizes, and a large model of another family that has little."""
    names = ("70m", "160m", "410m", "1b")
    runs = [
        run(f"EleutherAI/pythia-{name}", 100 * place, value, **options)
        for place, (name, value) in enumerate(zip(names, values, strict=False), 1)
    ]
    return [*runs, run("gpt2-xl", 10_000, 0.0, **options), run("tiny", 5, 0.9, **options)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EleutherAI/pythia-1.4b", "pythia"),
        ("EleutherAI/pythia-70m-deduped", "pythia-deduped"),
        ("gpt2", "gpt2"),
        ("gpt2-medium", "gpt2"),
        ("openai-community/gpt2-xl", "gpt2"),
        ("Qwen/Qwen3-0.6B", "qwen3"),
        ("gemma3-270m", "gemma3"),
        ("state-spaces/mamba-130m-hf@main", "mamba-hf"),
        ("/home/me/130m", "/home/me/130m"),
    ],
)
def test_a_family_is_a_name_without_its_size(name: str, expected: str) -> None:
    assert family(name) == expected


@pytest.mark.parametrize(
    ("values", "outcome", "growth"),
    [
        ((0.1, 0.9, 0.5), "holds", 0.4),
        ((0.5, 0.3, 0.1), "fails", -0.4),
        ((0.3, 0.9, 0.35), "unclear", 0.05),
    ],
)
def test_growth_with_size_by_hand(values, outcome, growth) -> None:
    """The largest model less the smallest; both lie within 0.05, so it within 0.05 √2."""
    (one,) = compare(sized(*values))
    assert one.outcome == outcome
    shown = {"sizes": 3, "growth": growth, "growth_low": growth - 0.0707}
    shown["growth_high"] = growth + 0.0707
    assert one.numbers == pytest.approx(shown, abs=1e-4)
    assert not one.has_bar


def test_two_sizes_are_not_enough_and_it_says_so() -> None:
    (one,) = compare(sized(0.1, 0.3))
    assert one.outcome == "not_testable"
    assert one.reason == (
        "gate not passed: three sizes of one family; there are 3 models, 2 in one "
        "family at most (pythia)"
    )
    (one,) = compare(sized(0.1))  # growth is not to be had
    assert one.numbers["growth"] is None
    (one,) = compare([run("tiny", 5, 0.9)])  # the control shows the rule, and does not count
    assert one.models == [] and one.reason.endswith("there are 0 models")


def test_a_share_of_models_by_hand() -> None:
    """0.3 and 0.5 lie above 0.2, 0.1 below, 0.22 around it. Clopper-Pearson: the chance of 6 of 6
    is 2.5% at 0.025^(1/6) = 0.541."""
    options = {"rule": SHARE, "across": ["memorised", "bar"]}
    models = [run(f"m{value}", 10, value, **options) for value in (0.1, 0.22, 0.3, 0.5)]
    (one,) = compare(models)
    assert [model.place for model in one.models] == ["below", "around", "above", "above"]
    assert one.outcome == "unclear" and one.has_bar
    assert one.numbers == {"models": 4, "share_low": pytest.approx(0.0676, abs=1e-4)} | {
        "share_high": pytest.approx(0.9937, abs=1e-4)  # 3 of 4 are not below
    }
    (one,) = compare([run(f"m{i}", 10, 0.5, **options) for i in range(6)])
    assert one.outcome == "holds" and one.numbers["share_low"] == pytest.approx(0.025 ** (1 / 6))
    (one,) = compare([run(f"m{i}", 10, 0.1, **options) for i in range(6)])
    assert one.outcome == "fails"
    no_bar = options | {"across": ["memorised"]}  # the bar is 0
    (one,) = compare([run("m1", 10, 0.02, **no_bar), run("m2", 10, 0.1, **no_bar)])
    assert [model.place for model in one.models] == ["around", "above"]


def test_what_has_no_number_is_left_out_with_the_reason() -> None:
    old, bare = run("old", 10, 0.5), run("bare", 10, 0.5)
    del old.record["measurements"]["memorised"]
    bare.record["measurements"]["memorised"]["interval"] = None
    (one,) = compare([old, bare, run("none", 10, None), run("good", 10, 0.5)])
    assert [model.run.model for model in one.models] == ["good"]
    assert {left.model: why for left, why in one.left_out} == {
        "old": "its record has no memorised",
        "bare": "memorised has no interval",
        "none": "memorised is not finite",
    }


def test_a_rule_with_a_number_that_there_is_not_is_refused() -> None:
    wrong = RULE | {"holds_if": "value > 0"}
    with pytest.raises(UsageError, match=r"claim 3\.2: holds_if uses 'value', which was not"):
        compare(sized(0.1, 0.2, 0.3, rule=wrong))


def test_the_chapters_use_the_numbers_that_there_are() -> None:
    for path in sorted(ROOT.glob("notebooks/*/claims.yaml")):
        for claim in read_claims(path)[0].claims if "across:" in path.read_text() else ():
            if claim.across is not None:
                rules = (claim.gate or "true", claim.holds_if, claim.fails_if)
                used = set().union(*map(names_in, rules))
                assert used <= {*NUMBERS, "smallest_effect"}, f"{path}: {claim.id}"
                assert 1 <= len(claim.across) <= 2, f"{path}: {claim.id}"
