"""Figures show themselves, and say in words what is drawn."""

import math

import pytest
import torch

from replib import figures
from replib.metrics import Estimate, Null
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer

HALF = Estimate(0.5, 0.25, 0.75, 8)
NAN = float("nan")
NULL = Null(torch.arange(20).double().numpy() / 100)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (
            figures.bars({"a\nb": HALF}, "share", chance=0.3, null=NULL),
            ["share: a b 0.5 (0.25 to 0.75)", "Chance is 0.3", "20 draws", "percentile 0.19"],
        ),
        (
            figures.bars({"a": Estimate(math.nan, math.nan, math.nan, 0)}, "share"),
            ["share: a not measured."],
        ),
        (figures.grouped_bars({"g": {"a": HALF}}, "x"), ["x. g: a 0.5 (0.25 to 0.75)"]),
        (
            figures.null_histogram(NULL, 0.7, "gain"),
            ["20 draws", "gain: mean 0.095", "observed 0.7"],
        ),
        (
            figures.lines([1.0, 2.0, 4.0], {"a": [0.0, 3.0, 2.0]}, "k", "loss", mark=0.0, log=True),
            ["loss over k: a from 0 at 1 to 2 at 4, largest 3 at 2", "A dashed line at 0."],
        ),
        (
            figures.lines(
                [0.0, 1.0, 2.0],
                {"a": [NAN, 3.0, 2.0], "b": [NAN] * 3},
                "k",
                "y",
                verticals={"best": 1.0},
            ),
            ["a from 3 at 1 to 2 at 2, largest 3 at 1; b nothing", "Vertical lines: best at 1."],
        ),
        (
            figures.head_maps({"s": torch.tensor([[0.5, -2.0]])}, {"s": [(0, 1)]}),
            ["s: L0H1 -2.00"],
        ),
        (figures.strips({"r": {"a": [1.0, 3.0]}}, "x", "no row"), ["r, a: 1 to 3"]),
        (figures.strips({}, "x", "no row"), ["no row"]),
        (
            figures.scatter(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), "ab", "x", "y"),
            ["2 points, y over x; furthest out: b (2, 5)"],
        ),
    ],
)
def test_a_figure_shows_itself_and_says_what_is_drawn(picture, words):
    data, metadata = picture._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")
    assert all(word in picture.alt for word in words), picture.alt
    assert metadata == {"image/png": {"alt": picture.alt}}


def test_a_prompt_token_by_token():
    tokenizer = word_tokenizer()
    pairs = ioi_pairs(tokenizer, 2, 0)
    shown = figures.tokens(tokenizer, pairs, 1).data
    assert shown.count('class="token') == int(pairs.length[1])
    assert shown.count('class="token differs"') == 1 and "↓ " in shown and "END" in shown


def test_the_source_of_a_function_is_shown_as_text():
    shown = figures.source(figures.source).data
    assert "replib.figures.source" in shown and "&lt;details" in shown
