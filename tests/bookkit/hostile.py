"""A paper whose records, rows and failed run hold what somebody would write who wants a script to
run in a reader's browser. `make_hostile` puts it into a project of small_book.py."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from small_book import EXPECTED, PARAMETERS, PNG, code, notebook, show, words, write_run

from bookkit.records import read_record
from replib import figures
from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.claims.tables import verdict_table
from replib.errors import CONTROL
from replib.models.sources import model_slug

PAPER = "hostile-paper"
HOST = "evil.example"
# What a script would do: it leaves a mark on the page, or on the page that holds it in a frame.
RUN = "top.document.documentElement.dataset.ran=1"

STRINGS = {
    "script": f"<script>{RUN}</script>",
    "handler": f'"><img src=x onerror="{RUN}">',
    "handler after a single quote": f"'><svg onload={RUN}>",
    "handler in a tag": f'" onmouseover="{RUN}',
    "end of a script": f"</script><script>{RUN}</script>",
    "end of the article": f"</td></table></div></article></main><script>{RUN}</script>",
    "handlers that need no click": f"<details open ontoggle={RUN}><input autofocus onfocus={RUN}>",
    "link": f'<a href="javascript:{RUN}">go</a>',
    "link in Markdown": f"[go](javascript:{RUN}) <javascript:{RUN}>",
    "frame": f"<iframe srcdoc='<script>{RUN}</script>'></iframe>",
    "pictures of another host": f"<img src=http://{HOST}/a> ![](http://{HOST}/b)",
    "base": f"<base href=http://{HOST}/>",
    "refresh": f'<meta http-equiv="refresh" content="0;url=http://{HOST}/c">',
    "style": f"<style>@import 'http://{HOST}/d';</style>",
    "comment": "<!-- <b>",
    "entity": "&lt;script&gt; &amp;",
    "fence": f"```\n\n```{{raw}} html\n<script>{RUN}</script>\n```\n",
    "longer fence": f"``````\n\n```{{raw}} html\n<script>{RUN}</script>\n```\n",
    "colons": f":::{{raw}} html\n<script>{RUN}</script>\n:::",
    "substitution": "{{ env }} {% raw %} {{ ''.__class__.__mro__ }}",
    "maths": f"$$\\href{{javascript:{RUN}}}{{x}}$$ \\(\\href{{javascript:{RUN}}}{{y}}\\) $z$",
    "backticks": "` `` ``` ````",
    "terminal": "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example/e\x07",
    "direction": "gpt2 \u202e\u2066fdp.exe",
    "controls": "\x00\x07\x9f",
}
TEXT = "\n".join(STRINGS.values())
ROLES = "{raw-html}`<b>` {record}`claims.1.1.value` {ref}`nowhere`"


def text(field: str) -> str:
    """All of it, as the content of one field. Roles only where the page shows code: elsewhere the
    gate refuses them, as roles that nobody resolved."""
    in_code = ("parameters notes", "model revision", "model sha256")
    text = f"[{field}] {TEXT}" + (ROLES if field in in_code else "")
    if not field.startswith(("own", "printed", "error", "log", "alt")):
        # A claims file or a record with control characters, or a key of several lines, is refused.
        text = CONTROL.sub(lambda match: match[0] if match[0] == "\n" else "", text)
    if field in ("key", "package"):
        text = " ".join(text.split())
    return text


# What a record does not leave free.
FIXED = {"paper", "profile", "status", "started", "date", "id", "mark", "outcome", "scope"}
FIXED |= {"across", "gate", "holds_if", "fails_if"}


def replaced(value: Any, *path: str) -> Any:
    """The same with the strings in the place of every text of a record that may be any text."""
    if isinstance(value, dict):
        return {key: replaced(one, *path, key) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, *path) for one in value]
    return text(" ".join(path)) if isinstance(value, str) and path[-1] not in FIXED else value


def hostile_record(root: Path) -> dict[str, Any]:
    """The record of the paper about nothing, with every field that it may have, made hostile."""
    record = read_record(root / "build/runs" / EXPECTED[0] / "record.json")
    del record["hashes"], record["seal"]
    record["model"]["revision"] = record["parameters"]["notes"] = ""
    record["changes"] = [{"date": "2026-01-01", "claim": "1.1", "reason": ""}]
    record["measurements"] = {"size": {"value": 1.5, "interval": None, "n": 3, "unit": ""}}
    record = replaced(record) | {"paper": PAPER}
    record["parameters"][text("key")] = [text("list")]
    record["versions"][text("package")] = "1"
    return record


MODEL = model_slug(text("model name"))
# The fields that a reader sees, by page.
SEEN = {
    f"chapters/{PAPER}/{MODEL}.html": (
        *("title", "model name", "model source", "model note", "model revision", "model sha256"),
        *("parameters notes", "key", "list", "versions torch", "package", "device"),
        *("claims statement", "claims reported", "claims source where", "claims reason"),
        *("claims measured unit", "measurements size unit", "claims decision_rule text"),
        *("printed", "own context", "own question", "own prompt"),
        *("file statement", "file reported", "file where", "file decision", "file change"),
    ),
    f"chapters/{PAPER}/{MODEL}.failed.html": ("error", "log"),
    f"chapters/{PAPER}/index.html": ("claims statement",),
    f"atlas/{MODEL}.html": ("heads mover rule",),
    "across.html": ("title", "claims statement", "claims reported", "claims decision_rule text"),
    "scorecard.html": (
        *("title", "claims statement", "claims reported", "claims source where", "claims reason"),
        *("claims measured unit", "claims null description"),
    ),
}


def claims_file() -> str:
    """The paper's own claims, in which everything but title and model is hostile."""
    claim = {"id": "1.1", "null": None, "gate": None, "gate_text": None}
    claim |= {"holds_if": "value > 0", "fails_if": "value < 0"}
    claim |= {name: text(f"file {name}") for name in ("statement", "reported", "decision")}
    claim["source"] = {"mark": "figure", "where": text("file where")}
    content = {"paper": PAPER, "title": "A {hostile} *Paper*", "arxiv": "2001.00002"}
    content |= {"model": "gpt2 <b>", "claims": [claim]}
    change = {"date": "2026-01-01", "claim": "1.1", "reason": text("file change")}
    return json.dumps(content | {"changes": [change]})  # JSON is YAML


def own_rows() -> list[dict[str, str]]:
    """The outputs in which chapters show rows of a user's own files."""
    figures.style()
    rows = pd.DataFrame({"prompt": [text(f"own {name}") for name in ("context", "prompt")]})
    steps = {text("own question"): {TEXT: [0.25, 0.25, 0.25], "else": [0.75, 0.75, 0.75]}}
    moved = figures.slider(steps, ["c = -1", "c = 0", "c = 1"], TEXT)
    styled = rows.style.set_properties(**{"white-space": "pre-wrap"})
    return [{"text/html": one._repr_html_(), "text/plain": "-"} for one in (rows, styled, moved)]


PROSE = """# A Hostile Paper

{record}`claims.1.1.unit` {record}`claims.1.1.note` {record}`claims.1.1.reason` {record}`title`
{record}`claims.1.1.statement` {record}`model.name` {record}`measurements.size.unit`
{record}`claims.1.1.null.description` {record}`device`
"""


def make_hostile(root: Path) -> None:
    """Add the paper, one finished and one failed run of it to the project in `root`."""
    home = root / "notebooks" / PAPER
    home.mkdir()
    (home / "claims.yaml").write_text(claims_file())
    profile = {"models": ["tiny"], "parameters": {}}
    profiles = dict.fromkeys(("smoke", "laptop", "paper"), profile)
    (home / "profiles.yaml").write_text(json.dumps(profiles))
    record = hostile_record(root)
    claims = Claims.load(home / "claims.yaml")
    bundle = {MIME: record, "text/plain": TEXT}
    bundle |= {"text/html": verdict_table(record["claims"])._repr_html_()}
    tables = [{"text/html": table._repr_html_()} for table in (claims.table(), claims.history())]
    picture = show({"image/png": PNG}, **{"image/png": {"alt": text("alt")}})
    printed = {"output_type": "stream", "name": "stdout", "text": text("printed")}
    error = {"output_type": "error", "ename": "ValueError", "evalue": text("error")}
    cells = [
        words(PROSE, "text"),
        code(PARAMETERS, 1, tags=["parameters"]),
        code(f"notes = {TEXT!r}", 2, tags=["injected-parameters"]),
        code("show()", 3, [show(data) for data in tables + own_rows()]),
        code("draw()", 4, [picture]),
        code("print(text)", 5, [printed]),
        code("claims.verdicts(info)", 6, [show(bundle)], tags=["claims"]),
    ]
    write_run(root, PAPER, MODEL, cells, text("hash"), record)
    stop = code("fail()", 7, [printed, error | {"traceback": [text("error")]}], tags=["hide-input"])
    stopped = root / "build/runs" / PAPER / f"{MODEL}.failed"
    stopped.mkdir()
    (stopped / "notebook.ipynb").write_text(notebook([*cells[:-1], stop, cells[-1]]))
    reason = " ".join(text("error").split())
    log = f"hostile, profile laptop, 2026-01-02T03:04:05Z\n{text('log')}\n\n"
    (stopped / "run.log").write_text(f"{log}failed: {reason} in cell [6], `fail()`\n")
