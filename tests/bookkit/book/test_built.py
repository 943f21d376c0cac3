"""The built pages of the small book: numbers from the right record, roles that fail the build."""

import re
from pathlib import Path

import pytest
from small_book import EXPECTED, MODELS, PAPER, build, stage


def page(built: Path, name: str) -> str:
    return (built / "_build/html" / name).read_text()


def test_a_chapter_page_says_which_model_it_shows(built: Path) -> None:
    text = page(built, f"chapters/{EXPECTED[1]}.html")
    assert "<h1>A Paper About Nothing (model-b)" in text
    assert text.count('aria-current="page">model-b</a>') == 1
    assert '<a href="model-a.html">model-a</a>' in text
    assert "replib run fake-paper --model model-b --profile laptop -p n_prompts=30" in text
    assert "transfer (the paper used gpt2-medium)" in text
    assert "made &lt;here&gt;" in text


def test_numbers_come_from_the_record_of_the_page(built: Path) -> None:
    for model, gain in zip(MODELS, ("30.0%", "6.0%"), strict=True):
        assert f">{gain}</span>, [" in page(built, f"chapters/{PAPER}/{model}.html")
    assert ">6.0%</span>" in page(built, "index.html")
    assert ">made &lt;here&gt;</span>; claim" in page(built, f"chapters/{EXPECTED[0]}.html")


def test_figures_and_equations_are_numbered_by_page(built: Path) -> None:
    for pair in EXPECTED:
        text = page(built, f"chapters/{pair}.html")
        assert set(re.findall(r">Fig\. (\d+)", text)) == {"1"}
        assert set(re.findall(r">\((\d+)\)<", text)) == {"1"}


def test_the_scorecard_shows_every_claim_on_every_model(built: Path) -> None:
    text = page(built, "scorecard.html")
    for model, outcome in zip(MODELS, ("holds", "unclear"), strict=True):
        mark = f'class="outcome outcome-{outcome}" data-record="{PAPER}/{model}" data-claim="1.1"'
        assert text.count(f"{mark}>{outcome}</span>") == 3  # transfer, outcomes, evidence
    assert "The gain &lt;b&gt;is&lt;/b&gt; large &amp; real" in text
    assert ">not testable</span>" in text
    assert "random heads" in text
    assert f'href="chapters/{PAPER}/model-a.html"' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{record}`fake-paper/model-a claims.1.1.vlaue`", "vlaue"),
        ("{record}`fake-paper/model-c wall_time_s`", "no record of fake-paper/model-c"),
        ("{record}`wall_time_s`", "shows no single run"),
        ("{record}`fake-paper/model-a model.name:.1%`", "format"),
    ],
)
def test_a_wrong_key_record_or_format_fails_the_build(
    project: Path, text: str, message: str
) -> None:
    (project / "book/index.md").write_text(f"# Home\n\n{text}\n")
    stage(project)
    result = build(project)
    assert result.returncode != 0
    assert message in re.sub(r"\s+", " ", result.stdout + result.stderr)
