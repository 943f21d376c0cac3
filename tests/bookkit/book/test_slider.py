"""The figure that a reader moves, in headless Chromium, with scripts and without."""

import re
import subprocess

import pytest
from bs4 import BeautifulSoup

from bookkit.book.pdf import find_chromium
from replib.figures import slider
from replib.files import find_root

CHROMIUM = find_chromium()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

QUESTIONS = {
    'What is </script> "2 & 2"?': {
        "Lima (context)": [0.0, 0.25, 1.0],
        "Paris (memory)": [1.0, 0.5, 0.0],
        "anything else": [0.0, 0.25, 0.0],
    }
}
STEPS = ["c = -1", "c = 0", "c = 1"]


def page(tmp_path, extra=""):
    static = find_root() / "book/_static"
    html = slider(QUESTIONS, STEPS, "The coordinate").data
    style = f"<style>{(static / 'replib.css').read_text()}</style>"
    script = f"<script>{(static / 'knob.js').read_text()}</script>"
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html>{style}{script}<body>{html}{extra}</body>")
    return path


def dom(path, *flags):
    """The page as it is after its scripts have run."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", *flags]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{path}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return BeautifulSoup(found.stdout, "html.parser")


def bars(soup):
    widths = [re.search(r"width: ([0-9.]+)%", bar["style"])[1] for bar in soup.select(".knob-bar")]
    return [float(w) for w in widths], [v.text for v in soup.select(".knob-value")]


@needs_chromium
def test_the_slider_shows_its_middle_first(tmp_path):
    soup = dom(page(tmp_path))
    assert soup.select_one("output").text == "c = 0"
    assert bars(soup) == ([25, 50, 25], ["25%", "50%", "25%"])
    assert not soup.select_one(".knob-moving").has_attr("hidden")
    assert soup.select_one(".knob-still").has_attr("hidden")
    assert soup.select_one(".knob-question").text == 'What is </script> "2 & 2"?'
    assert soup.select_one(".knob-name").text == "Lima (context)"


@needs_chromium
@pytest.mark.parametrize(("at", "widths"), [(0, [0, 100, 0]), (2, [100, 0, 0])])
def test_moving_the_slider_moves_the_bars(tmp_path, at, widths):
    move = (
        "<script>document.addEventListener('DOMContentLoaded', () => {"
        "const s = document.querySelector('input[type=range]');"
        f"s.value = {at}; s.dispatchEvent(new Event('input')); }});</script>"
    )
    soup = dom(page(tmp_path, move))
    assert bars(soup)[0] == widths
    assert soup.select_one("output").text == STEPS[at]
    assert soup.select_one("input")["aria-valuetext"] == STEPS[at]


def test_without_scripts_the_plain_figure_is_pointed_at(tmp_path):
    soup = BeautifulSoup(page(tmp_path).read_text(), "html.parser")
    assert soup.select_one(".knob-moving").has_attr("hidden")
    still = soup.select_one(".knob-still")
    assert "plain figure above" in still.text and not still.has_attr("hidden")


def test_the_slider_asks_no_other_host_and_has_a_label(tmp_path):
    text = slider(QUESTIONS, STEPS, "The coordinate").data
    assert "http" not in text and "src=" not in text
    soup = BeautifulSoup(text, "html.parser")
    assert soup.select_one("label input")["aria-label"] == "The coordinate"
    assert [script["type"] for script in soup.select("script")] == ["application/json"]


def moved(at):
    return (
        "<script>document.addEventListener('DOMContentLoaded', () => {"
        "const s = document.querySelector('input[type=range]');"
        f"s.value = {at}; s.dispatchEvent(new Event('input')); }});</script>"
    )


def other_page(tmp_path, at, **options):
    static = find_root() / "book/_static"
    rows = {("a", "<b>"): [0.5, -0.25], "same": [2.0, 0.0]}
    html = slider({"Which?": rows}, ["first", "second"], "Layer", **options).data
    path = tmp_path / "page.html"
    script = f"<script>{(static / 'knob.js').read_text()}</script>"
    path.write_text(f"<!doctype html>{script}<body>{html}{moved(at)}</body>")
    return dom(path)


def lefts(soup, what):
    return [float(re.search(r"left: ([0-9.]+)%", x["style"])[1]) for x in soup.select(what)]


@needs_chromium
def test_names_change_with_the_step_and_bars_may_go_below_zero(tmp_path):
    options = {"limits": (-0.5, 1.0), "percent": False, "mark": 0.25}
    first = other_page(tmp_path, 0, **options)
    assert [name.text for name in first.select(".knob-name")] == ["a", "same"]
    assert lefts(first, ".knob-bar") == pytest.approx([100 / 3, 100 / 3], abs=0.01)
    widths, values = bars(first)
    assert widths == pytest.approx([100 / 3, 200 / 3], abs=0.01)  # the second is cut at the limit
    assert values == ["0.50", "2.00"]  # but not its number
    second = other_page(tmp_path, 1, **options)
    assert [name.text for name in second.select(".knob-name")] == ["<b>", "same"]
    assert lefts(second, ".knob-bar")[0] == pytest.approx(100 / 6, abs=0.01)
    assert bars(second)[0] == pytest.approx([100 / 6, 0], abs=0.01)
    assert lefts(second, ".knob-mark") == pytest.approx([50, 50])
    assert lefts(second, ".knob-zero") == pytest.approx([100 / 3] * 2, abs=0.01)


@needs_chromium
def test_without_a_mark_and_above_zero_no_line_is_drawn(tmp_path):
    soup = other_page(tmp_path, 0)
    assert not soup.select(".knob-mark, .knob-zero")
    assert bars(soup)[1] == ["50%", "200%"]


def test_a_value_that_is_not_finite_is_refused_where_it_arises():
    with pytest.raises(ValueError, match="JSON"):
        slider({"Which?": {"a": [float("nan")]}}, ["first"], "Layer")


def test_the_step_that_is_shown_first_can_be_chosen():
    text = slider(QUESTIONS, STEPS, "The coordinate", start=2).data
    assert BeautifulSoup(text, "html.parser").select_one("input")["value"] == "2"
