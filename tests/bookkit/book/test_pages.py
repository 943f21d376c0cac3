"""Parts of pages: what becomes of a text of others and of a value, the policy, names, a slider."""

import hostile
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from bookkit.book import html_policy
from bookkit.book.html import duration, show_value
from bookkit.book.markup import as_myst, raw_html
from replib.figures import slider
from replib.markup import as_html, visible

TEXTS = [*hostile.STRINGS.values(), hostile.ROLES, "(label)=", "# x", "1. x"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_becomes_html_and_myst_that_say_it(text: str) -> None:
    page = BeautifulSoup(f'<p title="{as_html(text)}">x</p>', "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert page.p.attrs == {"title": visible(text)}
    page = BeautifulSoup(MarkdownIt().render(f"x {as_myst(text)}"), "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    assert page.get_text().strip() == f"x {' '.join(visible(text).split())}"


def test_unseen_characters_are_written_out() -> None:
    assert visible("a\x1b[0m\u202eb\ud800\n\tc") == "a\\u001b[0m\\u202eb\\ud800\n\tc"
    assert visible("ü – 日本 שלום") == "ü – 日本 שלום"


def test_raw_html_cannot_be_left() -> None:
    assert raw_html("a\n`````\nb").startswith("``````{raw} html\n")
    assert raw_html("a").startswith("```{raw} html\n")


def test_values_and_times_as_pages_show_them() -> None:
    assert show_value(0.1234, ".1%") == "12.3%"
    assert show_value(None, ".2f") == "not measured"
    assert show_value(True, ".2f") == "yes"
    assert show_value("not_testable") == "not testable"
    times = {42.4: "42 s", 75.2: "1 min 15 s", 59.7: "1 min 0 s", 7300.0: "2 h 1 min"}
    assert {seconds: duration(seconds) for seconds in times} == times


PAGE = """<html><head>
    <meta charset="utf-8" />
<script>one</script><script src="a.js"></script>
</head><body><article>TEXT</article></body></html>"""


def test_a_page_is_protected_once_and_allows_only_the_scripts_of_its_head() -> None:
    page = html_policy.protect(PAGE)
    assert html_policy.protect(page) == page
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert html_policy.is_protected(page) and not html_policy.is_protected(PAGE)
    with pytest.raises(ValueError, match="begin"):
        html_policy.protect(PAGE.replace("<head>", "<head><script>0</script>"))
    text = "</head></article></body><head><script>two</script></head>"
    search = PAGE.replace("<article>TEXT</article>", "<script>two</script>")  # nothing of anybody's
    for page, allowed in ((PAGE, 1), (PAGE.replace("TEXT", text), 1), (search, 2)):
        assert html_policy.policy(page).count("sha256-") == allowed


def test_parts_are_named_once() -> None:
    listed = '<div role="list" class="citation-list">'
    link = '<a class="reference internal" href="a.html">A &amp; B</a><details><summary>'
    named = html_policy.name_parts(link + html_policy.SIDE_BAR + listed)
    assert 'aria-label="Pages under A &amp; B"' in named and "Side bar" in named
    assert 'role="list"' not in named  # of things that are no items
    assert html_policy.name_parts(named) == named


def test_without_scripts_the_plain_figure_is_pointed_at() -> None:
    rows = {"</script>?": {"a": [0.0, 0.5, 1.0]}}
    text = slider(rows, ["one", "two", "three"], "Layer", start=0).data
    assert "http" not in text and "src=" not in text
    page = BeautifulSoup(text, "html.parser")
    assert page.select_one(".knob-moving").has_attr("hidden")
    still = page.select_one(".knob-still")
    assert "plain figure above" in still.text and not still.has_attr("hidden")
    given = page.select_one("label input")
    assert (given["aria-label"], given["value"]) == ("Layer", "0")
    assert [script["type"] for script in page.select("script")] == ["application/json"]
    with pytest.raises(ValueError, match="JSON"):
        slider({"Which?": {"a": [float("nan")]}}, ["first"], "Layer")
