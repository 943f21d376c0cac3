"""The chapter [[slug]], whole, on random weights."""

from pathlib import Path

from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.files import find_root


def test_nothing_is_claimed_on_random_weights(tmp_path: Path) -> None:
    chapter = find_chapter(find_root(), "[[slug]]")
    folder = execute(plan(chapter, "tiny", "smoke", {}, out=tmp_path))
    record = read_record(folder / "record.json")
    assert not [claim["id"] for claim in record["claims"] if claim["outcome"] == "holds"]


# To do: a planted model in which the mechanism is known (see replib.models.planted), and a test
# that the chapter finds it there.
