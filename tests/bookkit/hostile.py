"""A paper whose records, rows and failed run hold what somebody would write who wants a script to
run in a reader's browser. `make_hostile` puts it into a project of small_book.py."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from small_book import PARAMETERS, PNG, code, notebook, show, words, write_run

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
    text = f"[{field}] {TEXT}" + (ROLES if field in ("parameter", "revision", "weights") else "")
    if not field.startswith(("own", "printed", "error", "log", "alt")):
        # A claims file or a record with control characters, or a key of several lines, is refused.
        text = CONTROL.sub(lambda match: match[0] if match[0] == "\n" else "", text)
    if field in ("key", "package"):
        text = " ".join(text.split())
    return text


def hostile_record() -> dict[str, Any]:
    """What a record of the paper holds: the strings in every field that takes any text."""
    rule = {"text": text("rule"), "gate": text("gate"), "gate_text": text("gate text")}
    rule |= {"holds_if": text("holds if"), "fails_if": text("fails if")}
    claim = {
        "id": "1.1",
        "statement": text("statement"),
        "reported": text("reported"),
        "source": {"mark": "figure", "where": text("where")},
        "measured": {"value": 0.5, "unit": text("unit"), "note": text("note")},
        "interval": [0.25, 0.75],
        "n": 40,
        "null": {"description": text("null"), "q95": 0.1},
        "decision_rule": rule,
        "outcome": "holds",
        "reason": text("reason"),
        "scope": "transfer",
    }
    bare = {"id": "1.2", "measured": None, "interval": None, "n": None, "reported": None}
    bare |= {"null": {"description": None}, "outcome": "not_testable"}
    info = {"n_layers": 2, "n_heads": 2, "sha256": text("weights"), "name": text("model")}
    parameters = {"n_prompts": 30, "notes": text("parameter"), text("key"): [text("list")]}
    return {
        "paper": PAPER,
        "title": text("title"),
        "arxiv": text("arxiv"),
        "model": info | {name: text(name) for name in ("source", "note", "revision", "dtype")},
        "parameters": parameters,
        "claims": [claim, claim | bare],
        "measurements": {"size": {"value": 1.5, "interval": None, "n": 3, "unit": text("unit 2")}},
        "heads": {
            name: {"heads": [[0, 1], [1, 0]], "rule": text("head rule")}
            for name in ("mover", "induction")
        },
        "changes": [{"date": text("date"), "claim": "1.1", "reason": text("change")}],
        "versions": {"torch": text("version"), text("package"): "1"},
        "device": text("device"),
    }


MODEL = model_slug(text("model"))
# The fields that a reader sees, by page.
SEEN = {
    f"chapters/{PAPER}/{MODEL}.html": (
        *("model", "source", "note", "revision", "weights", "parameter", "key", "list", "version"),
        *("package", "device", "unit", "unit 2", "statement", "reported", "where", "reason"),
        *("rule", "title", "printed", "own context", "own question", "own prompt"),
        *("file statement", "file reported", "file where", "file decision", "file change"),
    ),
    f"chapters/{PAPER}/{MODEL}.failed.html": ("error", "log"),
    f"chapters/{PAPER}/index.html": ("statement",),
    f"atlas/{MODEL}.html": ("head rule",),
    "scorecard.html": ("title", "statement", "reported", "where", "unit", "null", "reason"),
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
    profiles = {"smoke": profile, "laptop": profile, "paper": profile}
    (home / "profiles.yaml").write_text(json.dumps(profiles))
    record = hostile_record()
    claims = Claims.load(home / "claims.yaml")
    keys = ("paper", "title", "arxiv", "model", "claims", "measurements", "heads", "changes")
    bundle = {MIME: {key: record[key] for key in keys}, "text/plain": TEXT}
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
