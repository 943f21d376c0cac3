"""The scorecard on the project's front page, from the certified records."""

from pathlib import Path

from bookkit.project import list_papers
from bookkit.records import FOLDER, read_record
from replib.claims.measure import Claims
from replib.claims.rules import OUTCOMES
from replib.files import write_whole
from replib.models.sources import EMBEDDED

START, END = "<!-- scorecard -->\n", "<!-- end of scorecard -->\n"


def scorecard(root: Path) -> str:
    """How many claims of each paper have which outcome on the embedded models, as Markdown."""
    head = [outcome.replace("_", " ") for outcome in OUTCOMES]
    lines = [f"| paper | model | {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(head)}"]
    for paper in list_papers(root):
        claims = Claims.load(root / "notebooks" / f"{paper}/claims.yaml")
        link = f"[{claims.title}](https://arxiv.org/abs/{claims.arxiv})"
        for model in EMBEDDED:
            path = root / FOLDER / paper / model / "record.json"
            if not path.is_file():
                continue
            outcomes = [claim["outcome"] for claim in read_record(path)["claims"]]
            counts = " | ".join(str(outcomes.count(outcome)) for outcome in OUTCOMES)
            lines.append(f"| {link} | {model} | {counts} |")
            link = ""
    return "\n".join(lines) + "\n"


def write(root: Path) -> None:
    """Put the scorecard between its marks in README.md, if the project has such a file."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if START not in text or END not in text:
        return
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    write_whole(path, f"{before}{START}{scorecard(root)}{END}{after}".encode())
