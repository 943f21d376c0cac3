"""A new paper: the files of a chapter that runs from the first minute, to be made into the paper's.

The notebook measures one thing for real (does the model prefer the right name?), with an interval,
a gate and a null, so that every part that a chapter needs is there once.
"""

import json
import re
from pathlib import Path

from bookkit.project import list_chapters
from replib.errors import UsageError
from replib.files import read_text, read_yaml

_CLAIMS = """\
# What the paper says and how each claim is decided. Write it before you run anything; what you
# change afterwards is entered under `changes`, with date and reason.
paper: "{slug}"
title: "{title}"
arxiv: "{arxiv}"
model: gpt2  # the paper's own
claims:
  - id: "1.1"
    statement: The model prefers the right name.  # one sentence that could be wrong
    reported: null  # the paper's number, with where it stands; null if you know of none
    source: {{mark: none, where: null}}  # abstract, figure, released code, second-hand or none
    null: answer and foil exchanged in half of the prompts, at random
    gate: n >= 8
    gate_text: at least eight prompts that the tokenizer can write
    holds_if: low > null_q95
    fails_if: high < null_q95
    decision: The interval lies above the 95th percentile of the null.
"""
_PROFILES = """\
# What `replib run {slug} --profile NAME` runs, unless told otherwise.
smoke: # the whole notebook in under a minute
  models: [tiny]
  parameters: {{n_prompts: 16}}
  work: 0.2
laptop: # pretrained models on two cores
  models: [smollm2-135m, gemma3-270m]
  parameters: {{}}
paper: # the paper's model and sizes
  models: [gpt2]
  parameters: {{n_prompts: 1000}}
  work: 10
"""
_TEST = '''\
"""The chapter {slug}, whole, on random weights."""

from replib.files import find_root
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan


def test_nothing_is_claimed_on_random_weights(tmp_path):
    chapter = find_chapter(find_root(), "{slug}")
    folder = execute(plan(chapter, "tiny", "smoke", {{}}, out=tmp_path))
    record = read_record(folder / "record.json")
    assert not [claim["id"] for claim in record["claims"] if claim["outcome"] == "holds"]


# To do: a planted model in which the mechanism is known (see replib.planted), and a test that the
# chapter finds it there.
'''
_CELLS: list[tuple[str, str, dict]] = [
    (
        "markdown",
        """# {title}

*A replication of* Authors, **{title}**, [arXiv:{arxiv}](https://arxiv.org/abs/{arxiv}).

**The finding.** One sentence: what did the paper find, in which model?""",
        {},
    ),
    (
        "code",
        """model_name: str = "smollm2-135m"  # from `replib list`, a Hugging Face id, a folder
revision: str = ""  # of a hub model: a branch, a tag or a commit
dtype: str = "float32"  # float32, bfloat16, float16 or float64
n_prompts: int = 100  # prompts
seed: int = 0  # of every random draw
device: str = "cpu"  # cpu, cuda, mps or auto
profile: str = "laptop"  # smoke, laptop or paper; only recorded""",
        {"tags": ["parameters"]},
    ),
    (
        "code",
        """import numpy as np

from replib import figures
from replib import metrics
from replib.claims.measure import Claims
from replib.interventions.head_edits import read
from replib.interventions.network import Network
from replib.metrics import Null, rng
from replib.models.bridge import model_info
from replib.models.load import load_model
from replib.prompts.ioi import ioi_pairs

figures.style()
claims = Claims.load("claims.yaml")""",
        {"tags": ["hide-input"]},
    ),
    ("markdown", "## What the paper claims, and how we decide", {}),
    ("code", "claims.table()", {"tags": ["hide-input"]}),
    ("markdown", "## Prompts and model", {}),
    (
        "code",
        """net = Network(
    load_model(model_name, revision=revision, dtype=dtype, device=device, seed=seed)
)
pairs = ioi_pairs(net.model.tokenizer, n_prompts, seed)""",
        {},
    ),
    ("markdown", "## Does the model prefer the right name? (claim 1.1)", {}),
    (
        "code",
        """right = read(net, pairs).logit_diff[0] > 0
share, interval = metrics.wilson(right)
coins = rng(seed, "1.1").random((1000, len(right))) < 0.5
null = Null(np.where(coins, right.numpy(), ~right.numpy()).mean(-1))
claims.measure("1.1", share, interval=interval, n=len(pairs), null=null.asdict());""",
        {},
    ),
    (
        "code",
        """values = {{"the right name": (share, interval)}}
fig = figures.bars(values, "share of prompts", chance=0.5)
figures.show(fig, figures.bars_alt(values, "prompts with the right name preferred"))""",
        {
            "tags": ["hide-input"],
            "mystnb": {
                "figure": {
                    "caption": "**The right name preferred**, with its 95% interval.",
                    "name": "fig-right",
                }
            },
        },
    ),
    (
        "markdown",
        """The model prefers the right name in {{record}}`claims.1.1.value:.0%` of the prompts:
claim 1.1 is **{{record}}`claims.1.1.outcome`**.

## Verdicts""",
        {},
    ),
    ("code", "claims.history()", {"tags": ["hide-input"]}),
    ("code", "claims.verdicts(model_info(net.model))", {"tags": ["claims"]}),
    (
        "markdown",
        """## Differences from the paper

- **Models.** See [the models page](../../models.md).

## Exercises

1. Change a parameter, and predict what happens before you run it.""",
        {},
    ),
]


def _notebook(slug: str, title: str, arxiv: str) -> str:
    cells = []
    for number, (kind, source, metadata) in enumerate(_CELLS):
        text = source.format(slug=slug, title=title, arxiv=arxiv)
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": metadata}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def new_paper(root: Path, slug: str, title: str, arxiv: str) -> list[Path]:
    """Write the files of a new chapter and enter it in the table of contents; what was written.

    Raises UsageError, and writes nothing, for a name that is taken or is no slug, a title or number
    that cannot stand in the files, and a table of contents without chapters.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or len(slug) > 60:
        raise UsageError(f"{slug!r} cannot name a paper; use words-like-this")
    if slug in list_chapters(root):
        raise UsageError(f"paper {slug} is there already")
    if not re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}", arxiv):
        raise UsageError(f"arXiv number {arxiv!r} is not like 2310.08744")
    sound = re.fullmatch(r"[^\"\\{}`:#]{3,200}", title) and title.isprintable()
    if not sound or title != title.strip() or "[MEM]" in title:  # which marks unverified numbers
        raise UsageError(f'title {title!r}: give 3 to 200 characters without " \\ {{ }} ` : #')
    toc = root / "_toc.yml"
    text = read_text(toc, "table of contents")
    read_yaml(text, f"table of contents {toc}")
    lines = text.splitlines(keepends=True)
    entries = [i for i, line in enumerate(lines) if re.match(r"\s*- file: chapters/", line)]
    if not entries:
        raise UsageError(f"{toc} has no entry chapters/.../index to put the new one behind")
    words = {"slug": slug, "title": title, "arxiv": arxiv}
    files = {
        root / "notebooks" / f"{slug}/{slug}.ipynb": _notebook(**words),
        root / "notebooks" / f"{slug}/claims.yaml": _CLAIMS.format(**words),
        root / "notebooks" / f"{slug}/profiles.yaml": _PROFILES.format(**words),
        root / "tests/replib/chapters" / f"test_{slug.replace('-', '_')}.py": _TEST.format(**words),
        root / "book" / "chapters" / f"{slug}.md": "What the chapter is about, in a paragraph.\n",
    }
    if taken := [path for path in files if path.exists()]:
        raise UsageError(f"{taken[0]} is there already")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    last = lines[entries[-1]]
    entry = re.sub(r"chapters/[^/]+/index", f"chapters/{slug}/index", last)
    lines.insert(entries[-1] + 1, entry)
    toc.write_text("".join(lines), encoding="utf-8")
    return [*files, toc]
