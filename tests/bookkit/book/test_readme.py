"""The front page says what the records say, and leads to what is there."""

import re
from pathlib import Path

from bookkit.book import readme

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "README.md").read_text()


def test_the_scorecard_is_that_of_the_certified_records():
    """Else: replib book readme."""
    shown = TEXT.split(readme.START)[1].split(readme.END)[0]
    assert shown == readme.scorecard(ROOT)
    assert shown.count("smollm2-135m") == 5


def test_every_link_leads_somewhere_and_every_command_is_known():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).is_file(), target
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.M))
    assert {"book", "test", "setup"} <= named <= targets


def test_it_is_written_between_its_marks(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{readme.START}former\n{readme.END}after\n")
    readme.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "former" not in text
    (tmp_path / "README.md").write_text("no marks\n")
    readme.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == "no marks\n"
