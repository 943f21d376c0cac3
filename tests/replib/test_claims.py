"""Claims files, outcomes, tables and records."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.claims.rules import OUTCOMES
from replib.errors import UsageError
from replib.metrics import Estimate, Null

ENTRY = """
  - id: {id}
    statement: Accuracy rises.
    reported: 49.6% to 93.7%
    source: {{mark: abstract, where: Sec. 5}}
    null: {null}
    gate: {gate}
    gate_text: {gate_text}
    holds_if: {holds_if}
    fails_if: {fails_if}
    decision: Ten points and more than the null.
"""


def claims_text(**rule):
    rule = {
        "id": "1.8",
        "null": "random heads",
        "gate": "accuracy > 0.4",
        "gate_text": "accuracy above 0.4",
        "holds_if": "value >= 0.1 and low > null_q95",
        "fails_if": "high < 0.1 or value <= null_mean",
    } | rule
    head = "paper: toy\ntitle: A title\narxiv: 2310.08740\nmodel: gpt2-medium\nclaims:"
    return head + ENTRY.format(**rule) + ENTRY.format(**(rule | {"id": "1.10"}))


@pytest.fixture
def load(tmp_path):
    def load(text=None, **rule):
        path = tmp_path / "claims.yaml"
        path.write_text(claims_text(**rule) if text is None else text)
        return Claims.load(path)

    return load


NUMBERS = {"interval": (0.2, 0.4), "n": 50, "null": {"mean": 0.0, "q95": 0.1}, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    gate:", "    gat: x\n    gate:", "unknown key 'gat'; did you mean 'gate'"),
        ("id: 1.10", "id: 1.8", "claim 1.8 is there twice"),
        ("paper: toy", 'paper: "toy\\n"', "should match pattern"),
        ("title: A title\n", "", "'title' is a required property"),
        ("mark: abstract", "mark: memory", "1.8, source, mark: 'memory' should be 'abstract', "),
        ("mark: abstract", "mark: none", "claim 1.8: source mark none, but reported is '49.6%"),
        ("reported: 49.6%", "reported: 49.6% [MEM]", "[MEM] is unverified"),
        ("low > null_q95", "low >", "claim 1.8: holds_if does not parse: value >= 0.1 and low >"),
        ("low > null_q95", "holds", "claim 1.8: holds_if uses the outcome 'holds'"),
        ("low > null_q95", "min(value) > 1", "abs takes one number, min and max two or more"),
        ("low > null_q95", "low ** 9 > 1", "holds_if may not contain Pow"),
        ("low > null_q95", "open('x')", "may call min, max and abs only"),
        ("low > null_q95", "max > 1", "uses max without calling it"),
        ("low > null_q95", "low.real > 1", "holds_if may not contain Attribute"),
        ("low > null_q95", "low > 'a'", "may not contain 'a'"),
        ("low > null_q95", "(max if low else min)(low, 1) > 0", "may call min, max and abs only"),
        ("gate_text: accuracy above 0.4", "gate_text: null", "gate and gate_text go together"),
        ("id: 1.10", "id: 1/10", "claim 1/10, id: '1/10' should match pattern"),
        ("claims:", "changes: [{date: 2025-1-1, claim: 1.8, reason: x}]\nclaims:", "2025-1-1"),
        (
            "claims:",
            "changes: [{date: 2025-01-01, claim: 1.9, reason: x}]\nclaims:",
            "a change names claim 1.9, which is not there; did you mean",
        ),
        ("claims:", "claims: [", "line 6"),
    ],
)
def test_a_file_with_a_mistake_is_refused_in_one_line(load, old, new, message):
    text = claims_text()
    assert old in text
    with pytest.raises(UsageError) as error:
        load(text.replace(old, new, 1))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("claims file ")


@pytest.mark.parametrize(
    ("value", "numbers", "outcome"),
    [
        (0.3, {}, "holds"),
        (0.1, {}, "holds"),  # value >= 0.1, at the edge
        (0.0999, {}, "unclear"),
        (0.3, {"interval": (0.1, 0.4)}, "unclear"),  # low > q95 fails at the edge
        (0.05, {"interval": (0.0, 0.0999)}, "fails"),
        (0.05, {"interval": (0.0, 0.1)}, "unclear"),
        (0.0, {}, "fails"),  # value <= null_mean
        (0.3, {"accuracy": 0.4}, "not_testable"),  # the gate's edge
        (0.0, {"accuracy": 0.1}, "not_testable"),  # the gate comes before the rule
        (math.nan, {}, "not_testable"),
        (-(10**400), {}, "not_testable"),
        (torch.tensor([-math.inf], dtype=torch.bfloat16), {}, "not_testable"),
        (0.3, {"interval": (0.2, math.inf)}, "not_testable"),
        (0.3, {"null": {"mean": 0.0, "q95": math.nan}}, "not_testable"),
        (0.3, {"other": math.nan}, "not_testable"),
    ],
)
def test_outcome(load, value, numbers, outcome):
    claims = load()
    assert claims.outcome("1.8") == "not_attempted"
    assert claims.measure("1.8", value, **(NUMBERS | numbers)) == outcome
    assert claims.outcome("1.8") == outcome
    assert claims.outcome("1.10") == "not_attempted"
    assert bool(claims.results["1.8"].reason) == (outcome == "not_testable")


@pytest.mark.parametrize(
    ("rule", "numbers", "reason"),
    [
        ({}, {"accuracy": 0.1, "x": math.nan}, "gate not passed: accuracy above 0.4"),
        ({}, {"accuracy": math.nan}, "not a finite number: accuracy"),
        ({"gate": "accuracy / null_mean > 2"}, {}, "the gate divides by zero"),
        ({"holds_if": "value / null_mean > 2"}, {}, "the rule divides by zero"),
        ({"gate": f"accuracy * {'9' * 320} > 0"}, {}, "the gate's numbers are too large"),
        ({"fails_if": f"value * {'9' * 320} > 0"}, {}, "the rule's numbers are too large"),
    ],
)
def test_the_reason_why_it_is_not_testable(load, rule, numbers, reason):
    claims = load(**rule)
    assert claims.measure("1.8", 0.3, **(NUMBERS | numbers)) == "not_testable"
    assert claims.results["1.8"].reason == reason
    claims.bundle({"name": "tiny", "sha256": None})  # JSON, whatever was measured


def test_control_characters_in_notes_are_shown(load):
    claims = load()
    claims.measure("1.8", 0.3, note="a token: \0\ud800\nand é\xa0", **NUMBERS)
    claims.measure("1.10", None, otherwise="it said \x07")
    claims.report("share", 1, unit="\x85")
    claims.role("mover", [], "\x1b")
    measured = claims.results["1.8"].measured
    assert measured["note"] == "a token: \\u0000\\ud800\nand é\xa0"
    assert claims.results["1.10"].reason == "it said \\u0007"
    assert claims.measurements["share"]["unit"] == "\\u0085"
    assert claims.heads["mover"]["rule"] == "\\u001b"


def shares(smallest=""):
    text = claims_text(fails_if="high < smallest_effect", null="null")
    return text.replace("    null:", f"    unit: share\n{smallest}    null:")


SMALLEST = "    smallest_effect: {value: 0.1, reason: a third of the 44 points}\n"


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        (0.9, {"interval": (0.8, 1.02)}, "claim 1.8 is a share, but its interval is 0.8 to 1.02"),
        (Estimate(0.1, -0.01, 0.2, 9), {}, "is a share, but its interval is -0.01 to 0.2"),
        (0.9, {"interval": (0.9, 0.9)}, "claim 1.8: the interval has no width, 0.9 to 0.9"),
        (0.9, {"more": Estimate(2.0, 2.0, 2.0, 5)}, "claim 1.8: more: the interval has no width"),
    ],
)
def test_impossible_numbers_are_refused(load, value, more, message):
    claims = load(shares(SMALLEST).replace("low > null_q95", "low > 0.3"))
    with pytest.raises(UsageError, match=message):
        claims.measure("1.8", value, **({"accuracy": 0.5, "n": 9} | more))
    assert claims.measure("1.8", 0.9, interval=(0.8, 1.0), accuracy=0.5) == "holds"


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [((0.0, 0.09), "fails"), ((0.0, 0.2), "unclear"), ((0.4, 0.6), "holds")],
)
def test_fails_is_evidence_that_the_effect_is_smaller_than_matters(load, interval, outcome):
    claims = load(shares(SMALLEST).replace("low > null_q95", "low > 0.3"))
    claims.measure("1.8", 0.5, interval=interval, accuracy=0.5)
    assert claims.outcome("1.8") == outcome
    rule = claims.bundle({"name": "tiny", "sha256": None})[MIME]["claims"][0]["decision_rule"]
    assert rule["smallest_effect"] == {"value": 0.1, "reason": "a third of the 44 points"}
    assert "0.1: a third of the 44 points" in claims.table()._repr_html_()


def test_a_smallest_effect_and_a_rule_that_uses_it_go_together(load):
    for text in (shares(), claims_text().replace("    null:", f"{SMALLEST}    null:")):
        with pytest.raises(UsageError, match="smallest_effect and a rule that uses it go together"):
            load(text)


def test_a_claim_across_models_is_decided_elsewhere(load):
    text = claims_text().replace("    null:", "    across: [share]\n    null:", 1)
    claims = load(text)
    with pytest.raises(UsageError, match="decided across models; report share"):
        claims.measure("1.8", 0.3, **NUMBERS)
    with pytest.raises(UsageError, match="'share' was not reported"):
        claims.bundle({"name": "tiny", "sha256": None})
    claims.report("share", 0.5)
    entry = claims.bundle({"name": "tiny", "sha256": None})[MIME]["claims"][0]
    assert entry["outcome"] == "not_attempted" and entry["across"] == ["share"]
    assert entry["reason"] == "decided on the page across models, from their records"


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("abs(value) == 2 and not value > 0", "holds"),
        ("min(value, 5) == -2", "holds"),
        ("max(value, 5) - 5 == 0", "holds"),
        ("-3 < value < -1", "holds"),
        ("value * 2 + 4 == 0 or false", "holds"),
        (">-\n      value == -2\n      and n == 3", "holds"),
        ("value > 0", "unclear"),  # neither this nor fails_if
    ],
)
def test_what_a_rule_may_say(load, expression, outcome):
    claims = load(gate="null", gate_text="null", holds_if=expression, fails_if="false")
    assert claims.measure("1.8", -2, n=3) == outcome


@pytest.mark.parametrize(
    ("rule", "numbers", "message"),
    [
        ({"holds_if": "vale > 0"}, {}, "holds_if uses 'vale', which was not .*; did you mean"),
        ({"gate": "acuracy > 0"}, {}, "gate uses 'acuracy'"),
        ({"gate": "accuracy > 9", "fails_if": "null_n > 0"}, {}, "fails_if uses 'null_n'"),
        ({"holds_if": "value + 1"}, {}, "holds_if gives 1.3, not true or false"),
        ({"fails_if": "value > 0"}, {}, "bad rule, holds_if .* and fails_if .* are both true"),
        ({"holds_if": "-" * 700 + "value > 0"}, {}, r"claim 1\.8: holds_if is nested too deeply"),
        ({"null": "null"}, {}, "a null that the claims file does not name"),
        ({}, {"interval": (0.4, 0.2)}, "low 0.4 above high 0.2"),
        ({}, {"interval": 0.4}, r"give \(low, high\)"),
        ({}, {"n": 1.5}, "give a count"),
        ({}, {"n": -1}, "give a count"),
        ({}, {"n": 10**400}, "n is inf; give a count"),
        ({}, {"accuracy": "0.5"}, "accuracy is '0.5', a str; give one number"),
        ({}, {"accuracy": torch.zeros(2)}, r"array of shape \(2,\)"),
        ({}, {"holds": 1}, "'holds' cannot name a number"),
        ({}, {"null_mean": 1}, "'null_mean' is a number of the null"),
        ({}, {"is-odd": 1}, "'is-odd' cannot name a number"),
        ({}, {"null": {"description": 1}}, "'description' cannot name a number of the null"),
        ({}, {"null": {"Q 95": 1}}, "'Q 95'"),
    ],
)
def test_a_rule_and_numbers_that_do_not_fit(load, rule, numbers, message):
    claims = load(**rule)
    with pytest.raises(UsageError, match=message):
        claims.measure("1.8", 0.3, **(NUMBERS | numbers))
    assert claims.outcome("1.8") == "not_attempted"


def test_once_and_by_its_name(load):
    claims = load()
    claims.measure("1.8", 0.3, **NUMBERS)
    claims.report("accuracy", 0.5)
    claims.role("mover", [], "a rule")
    for call, message in [
        (lambda: claims.measure("1.8", 0.3, **NUMBERS), "measured twice"),
        (lambda: claims.measure("1.8", None, otherwise="no"), "measured twice"),
        (lambda: claims.measure("1.18", 0.3), r"no claim '1.18'.*did you mean"),
        (lambda: claims.outcome("9"), "no claim '9'"),
        (lambda: claims.measure("1.10", None, otherwise=" "), "say in `otherwise` why"),
        (lambda: claims.report("accuracy", 0.5), "reported twice"),
        (lambda: claims.report("1.accuracy", 0.5), "a key is letters"),
        (lambda: claims.role("mover", [], "again"), "given twice"),
        (lambda: claims.role("movers", [], "no such role"), "did you mean 'mover'"),
        (lambda: claims.role("copy", [(0, 0)], " "), "needs the rule"),
        (lambda: claims.bundle({"name": "tiny"}), "lacks 'sha256'"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize(
    "scalar", [0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([0.5])]
)
def test_scalars_become_plain_numbers(load, scalar):
    claims = load(gate="null", gate_text="null", holds_if="value > 0", fails_if="false")
    ends = (np.False_, scalar)
    claims.measure("1.8", scalar, interval=ends, n=torch.tensor(7), flag=np.bool_(True))
    result = claims.results["1.8"]
    assert type(result.measured["value"]) is float and result.measured["value"] == 0.5
    assert [type(end) for end in result.interval] == [float] * 2 and result.interval == (0, 0.5)
    assert (type(result.n), result.n) == (int, 7)
    assert result.measured["flag"] is True


def test_an_estimate_brings_its_interval_and_n(load):
    claims, plain = load(), load()
    gain, more = Estimate(0.3, 0.2, 0.4, 50), Estimate(0.5, 0.1, 0.9, 3)
    null = Null(np.arange(100) / 1000)
    claims.measure("1.8", gain, null=null, accuracy=more)
    named = {"accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9}
    plain.measure("1.8", 0.3, interval=(0.2, 0.4), n=50, null=null.asdict(), **named)
    assert claims.results == plain.results
    claims.report("x", gain)
    plain.report("x", 0.3, interval=(0.2, 0.4), n=50)
    assert claims.measurements == plain.measurements
    with pytest.raises(UsageError, match="'a_low' is given twice"):
        load().measure("1.8", gain, a=more, a_low=0.1)


def test_no_value_means_not_testable(load):
    claims = load()
    assert claims.measure("1.8", None, otherwise="no \x07 head", accuracy=1) == "not_testable"
    assert claims.results["1.8"].reason == "no \\u0007 head"
    assert claims.results["1.8"].measured is None


def test_the_history_shows_every_change_in_full(load):
    reason = "A long reason that a table of pandas would cut off after fifty characters <b>."
    claims = load()
    entry = {"date": "2026-11-25", "claim": claims.claims[0].id, "reason": reason}
    shown = replace(claims, changes=(entry,)).history()._repr_html_()
    assert "cut off after fifty characters &lt;b&gt;." in shown and "2026-11-25" in shown
    assert "nothing" in claims.history()._repr_html_()


def test_the_table_shows_the_claims_before_anything_is_measured(load):
    shown = load().table()._repr_html_()
    for text in ("1.8", "Accuracy rises.", "49.6% to 93.7%", "abstract, Sec. 5", "random heads"):
        assert text in shown
    assert "Ten points" in shown and "accuracy above 0.4" in shown
    assert not any(re.search(rf"\b{outcome}\b", shown) for outcome in OUTCOMES)


def test_html_is_escaped_everywhere(load):
    bad = "<script>alert(1)</script>"
    text = claims_text().replace("Accuracy rises.", bad).replace("random heads", f"a {bad}")
    text = text.replace("49.6%", bad).replace("Ten points", bad).replace("Sec. 5", bad)
    text = text.replace("accuracy above 0.4", bad).replace("A title", bad)
    claims = load(text)
    claims.measure("1.8", 0.3, note=bad, **NUMBERS)
    claims.measure("1.10", None, otherwise=bad)
    bundle = claims.bundle({"name": bad, "sha256": None})
    for shown in (claims.table()._repr_html_(), bundle["text/html"]):
        assert "<script" not in shown
        assert shown.count("&lt;script&gt;") >= 8
    assert bundle[MIME]["claims"][0]["statement"] == bad  # data stays as it is


def test_the_bundle_holds_everything(load):
    claims = load(claims_text().replace("    null:", "    unit: points\n    null:"))
    claims.measure("1.8", 0.3, note="a note", **NUMBERS)
    claims.report("ioi", 0.9, interval=(0.8, 1.0), n=10, unit="share")
    claims.role("mover", [(2, 1), (0, 3), (2, 1)], "attends to the name")
    claims.role("memory", [], "none passed")
    bundle = claims.bundle({"name": "tiny", "sha256": "abc", "n_params": 3})
    content = bundle[MIME]
    assert content["claims"][0] == {
        "id": "1.8",
        "statement": "Accuracy rises.",
        "reported": "49.6% to 93.7%",
        "source": {"mark": "abstract", "where": "Sec. 5"},
        "measured": {"value": 0.3, "unit": "points", "note": "a note", "accuracy": 0.5},
        "interval": [0.2, 0.4],
        "n": 50,
        "null": {"description": "random heads", "mean": 0.0, "q95": 0.1},
        "decision_rule": {
            "text": "Ten points and more than the null.",
            "gate": "accuracy > 0.4",
            "gate_text": "accuracy above 0.4",
            "holds_if": "value >= 0.1 and low > null_q95",
            "fails_if": "high < 0.1 or value <= null_mean",
        },
        "outcome": "holds",
        "reason": "",
    }
    assert content["claims"][1]["outcome"] == "not_attempted"
    assert content["measurements"] == {
        "ioi": {"value": 0.9, "interval": [0.8, 1.0], "n": 10, "unit": "share"}
    }
    assert content["model"] == {"name": "tiny", "sha256": "abc", "n_params": 3}
    assert content["paper_model"] == "gpt2-medium"
    for text in ("0.3 points [0.2, 0.4], n = 50", "q95 0.1", "outcome-holds", "not attempted"):
        assert text in bundle["text/html"]
    assert content["heads"] == {
        "mover": {"heads": [[0, 3], [2, 1]], "rule": "attends to the name"},
        "memory": {"heads": [], "rule": "none passed"},
    }
