"""The gate: reads the built pages again and says, one line each, what must not be published.

Jupyter Book exits 0 on a book that holds a failed notebook, so nothing here trusts the build: pages
are parsed from the HTML on disk, and records and notebooks from the runs.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from bs4.element import PreformattedString, Tag

from bookkit.book import across, crate
from bookkit.book.contents import pages_in
from bookkit.book.failed import FailedRun, find_failed
from bookkit.book.html import number_of, outcome_word, why_not
from bookkit.book.html_policy import DATA_TYPES, is_protected, own_scripts, pages_of
from bookkit.book.runs import RECORDS, STALE, Run, by_paper, find_runs, finished, of_papers
from bookkit.book.sphinx_ext import text_of_value
from bookkit.records import bundles, differences
from replib.claims.tables import show_number
from replib.errors import UsageError
from replib.markup import visible

ERROR_TEXT = re.compile(r"DeadKernelError|CellTimeoutError|Traceback \(most recent call last\)")
# A role as it was written, or, before <code>, without its text.
ROLE = re.compile(r"\{[A-Za-z][\w:.+-]*\}(`|$)")


def faults(
    html: Path,
    runs: Path,
    book: Path,
    expected: Sequence[str] | None = None,
    certified: Path | None = None,
) -> list[str]:
    """Everything wrong with the book in `html`, staged in `book` from `runs`; empty when right.

    `expected` names the runs (`paper/model`) that it must show; without it, all that finished, and
    a page for each that failed. It also shows those of `certified` that its pages name.
    """
    if not (html / "index.html").is_file():
        return [f"no book in {html}: index.html is missing"]
    if not (book / "_toc.yml").is_file():
        return [f"no staged book in {book}: _toc.yml is missing"]
    stopped = find_failed(runs) if expected is None else ()
    failed = {f"chapters/{run.key}": run for run in stopped}
    staged = {f"{p.parent.name}/{p.stem}" for p in (book / RECORDS).glob("*/*.json")}
    stale = json.loads((book / STALE).read_text())
    found: list[str] = []
    shown: dict[str, Run] = {}
    for pair in sorted(staged.union(finished(runs) if expected is None else expected)):
        try:
            (run,) = find_runs(runs, [pair], certified)
        except UsageError as error:
            found.append(str(error))
            continue
        shown[pair] = run = replace(run, stale=tuple(stale.get(pair, ())))
        if run.executed:
            found += notebook_faults(run)
    listed = pages_in(book / "_toc.yml")
    due = dict.fromkeys([*failed, *(f"chapters/{pair}" for pair in shown), *listed])
    found += [f"{page}.html is missing" for page in due if not (html / f"{page}.html").is_file()]
    for path in pages_of(html):
        found += page_faults(html, path, shown, failed)
    found += summary_faults(html, shown, listed)
    return list(dict.fromkeys([*found, *crate.faults(html)]))


# --- runs -----------------------------------------------------------------------------------------


def notebook_faults(run: Run) -> list[str]:
    """Errors, cells that never ran, and claims that differ from the record."""
    path = run.folder / "notebook.ipynb"
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{path} is not a notebook: {error}"]
    found = []
    for number, cell in enumerate(notebook["cells"], 1):
        where = f"{path}, cell {number}"
        if cell["cell_type"] != "code":
            continue
        if "".join(cell["source"]).strip() and cell["execution_count"] is None:
            found.append(f"{where} never ran")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"{where} ended in {output['ename']}: {output['evalue']}")
            elif ERROR_TEXT.search(json.dumps(output)):
                found.append(f"{where} shows an error")
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                found.append(f"{where} shows a widget, which the book cannot")
    if notebook["metadata"].get("papermill", {}).get("exception"):
        found.append(f"{path} was left by a run that failed")
    verdicts = bundles(notebook["cells"])
    if len(verdicts) != 1:
        return [*found, f"{path} has {len(verdicts)} outputs of verdicts, not one"]
    return [*found, *(f"{path}: {text}" for text in differences(run.record, verdicts[0][1]))]


# --- pages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A built page as it is on disk, parsed."""

    path: Path
    text: str

    @cached_property
    def soup(self) -> BeautifulSoup:
        return BeautifulSoup(self.text, "html.parser")

    @cached_property
    def anchors(self) -> set[str]:
        """The places in it that a link can lead to."""
        ids = {tag["id"] for tag in self.soup.find_all(id=True)}
        return ids | {tag["name"] for tag in self.soup.find_all("a", attrs={"name": True})}

    @cached_property
    def faults_of_itself(self) -> list[str]:
        """What is wrong with it whatever was run."""
        found = [*leak_faults(self.soup), *image_faults(self.soup), *leaving_faults(self.soup)]
        return [*found, *script_faults(self.soup, self.text)]


def read_page(path: Path) -> Page:
    """A page, read and parsed once as long as it does not change."""
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@cache
def _read(path: Path, changed: int, size: int) -> Page:
    return Page(path, path.read_text(encoding="utf-8", errors="replace"))


def page_faults(
    html: Path, path: Path, runs: Mapping[str, Run], failed: Mapping[str, FailedRun]
) -> list[str]:
    """Everything wrong with one page; only those named in `failed` may show an error."""
    page = read_page(path)
    name = path.relative_to(html).as_posix().removesuffix(".html")
    state = failed_faults(page.soup, failed[name]) if name in failed else error_faults(page.soup)
    found = [*state, *number_faults(page.soup, runs), *outcome_faults(page.soup, name, runs)]
    found += across_faults(page.soup, runs)
    found += [*page.faults_of_itself, *link_faults(html, page)]
    return [f"{name}.html: {fault}" for fault in found]


def failed_faults(page: BeautifulSoup, run: FailedRun) -> Iterator[str]:
    """A failed run's page must say so before anything else, and show no result."""
    notes = page.select(".failed-note")
    cell = page.select_one(".cell")
    if len(notes) != 1 or notes[0].get("data-run") != run.key:
        yield "does not say that the run failed"
    elif visible(run.reason) not in [row.get_text() for row in notes[0].select("dd")]:
        yield "does not say why the run failed, as its log does"
    elif cell and not cell.find_previous(class_="failed-note"):
        yield "says that the run failed after it shows its cells"
    for result in page.select(".outcome, .run-box, .record"):
        yield f"shows a result of a run that failed: {result.get_text()[:60]}"


def error_faults(page: BeautifulSoup) -> Iterator[str]:
    if page.select(".failed-note"):
        yield "is the page of a failed run that is not there"
    if page.select(".output.traceback, .cell_output.error, .output.error, #papermill-error-cell"):
        yield "shows the output of an error"
    for output in page.select(".cell_output"):
        if match := ERROR_TEXT.search(output.get_text()):
            yield f"shows {match[0]}"


def number_faults(page: BeautifulSoup, runs: Mapping[str, Run]) -> Iterator[str]:
    """Every shown value, and every page's run, against the records as they are now."""
    for span in page.select("span.record"):
        pair, key = span.get("data-record", ""), span.get("data-key", "")
        if pair not in runs:
            yield f"shows {key} of {pair or 'no run'}, which is not among the runs"
            continue
        try:
            value = text_of_value(runs[pair], key, span.get("data-format", ""))
        except (UsageError, ValueError) as error:
            yield f"shows {key}: {error}"
            continue
        if span.get_text() != value:
            yield f"shows {span.get_text()!r} for {key} of {pair}, the record says {value!r}"
    for box in page.select(".run-box"):
        pair = box.get("data-record", "")
        if pair not in runs:
            yield f"is the page of {pair}, which is not among the runs"
        elif box.get("data-sha256") != runs[pair].sha256:
            yield f"was built from another run of {pair} than the one that is there now"
        elif bool(runs[pair].stale) != bool(page.select(".stale-note")):
            yield f"does not say whether {pair} is stale"
    for cell in page.select(".transfer-table td[title]"):
        mark = cell.select_one(".outcome")
        run = runs.get(mark["data-record"]) if mark else None
        claim = run and run.claim(mark.get("data-claim", ""))
        if not claim or cell["title"] != number_of(claim):
            yield f"the transfer table says {cell['title']!r}, no record does"
        elif (why := cell.select_one(".why")) and why.get_text() != why_not(claim):
            yield f"the transfer table says {why.get_text()!r} of claim {claim['id']}"


def outcome_faults(page: BeautifulSoup, name: str, runs: Mapping[str, Run]) -> Iterator[str]:
    """Every outcome on the page; a chapter's page has one for each claim, with its numbers."""
    own = runs.get(name.removeprefix("chapters/"))
    missing = {claim["id"] for claim in own.record["claims"]} if own else set()
    for mark in page.select(".outcome"):
        row = mark.find_parent("tr")
        if "data-record" in mark.attrs:
            run, id = runs.get(mark["data-record"]), mark.get("data-claim", "")
        elif own and row is not None and mark.find_parent("table", class_="verdicts-table"):
            run, id = own, row.find(["td", "th"]).get_text().strip()
            missing.discard(id)
        else:
            continue
        claim = run.claim(id) if run else None
        if claim is None:
            yield f"shows an outcome of claim {id}, which no record has"
            continue
        shown, right = mark.get_text().strip(), outcome_word(claim["outcome"])
        if shown != right or f"outcome-{claim['outcome']}" not in mark["class"]:
            yield f"says that claim {id} {shown}, the record of {run.key} says {right}"
        if "data-record" not in mark.attrs and claim["measured"] is not None:
            text = " ".join(row.get_text(" ").split())
            numbers = (claim["measured"]["value"], *(claim["interval"] or ()), claim["n"])
            for number in (show_number(x) for x in numbers if x is not None):
                if number not in text:
                    yield f"does not show {number} for claim {id}, as the record of {run.key} does"
    for id in sorted(missing):
        yield f"shows no verdict on claim {id}"


def across_faults(page: BeautifulSoup, runs: Mapping[str, Run]) -> Iterator[str]:
    """Every outcome, number and reason of a claim across models, against the records."""
    marks = page.select("[data-across]")
    decided = {(one.paper, one.id): one for one in across.compare(runs.values())} if marks else {}
    for mark in marks:
        one = decided.get((mark["data-across"], mark.get("data-claim")))
        if one is None:
            yield f"shows a claim across models that no record has: {mark.get('data-claim')}"
            continue
        right = None
        if "outcome" in mark["class"]:
            right = outcome_word(one.outcome)
        elif "across-reason" in mark["class"]:
            right = visible(one.reason)
        elif "across-number" in mark["class"]:
            value = one.numbers.get(mark.get("data-key", ""))
            right = "–" if value is None else show_number(value)
        if right is not None and mark.get_text().strip() != right:
            said = mark.get_text().strip()
            yield f"says {said!r} of claim {one.id} across models, by the records it is {right!r}"


def summary_faults(html: Path, runs: Mapping[str, Run], listed: Sequence[str]) -> Iterator[str]:
    """The scorecard and each chapter's first page name every claim of every run, and the page
    across models every claim that is decided there."""
    path = html / "across.html"
    if "across" in listed and path.is_file():
        marks = read_page(path).soup.select(".outcome[data-across]")
        there = {(mark["data-across"], mark.get("data-claim")) for mark in marks}
        for one in across.compare(runs.values()):
            if (one.paper, one.id) not in there:
                yield f"across.html: lacks claim {one.id} of {one.paper}"
    for paper, members in by_paper(of_papers(runs.values())).items():
        for name in (f"chapters/{paper}/index", "scorecard"):
            if name not in listed or not (path := html / f"{name}.html").is_file():
                continue
            marks = read_page(path).soup.select(".outcome[data-record]")
            there = {(mark["data-record"], mark.get("data-claim")) for mark in marks}
            for run in members:
                for claim in run.record["claims"]:
                    if (run.key, claim["id"]) not in there:
                        yield f"{name}.html: lacks claim {claim['id']} of {run.key}"


def leak_faults(page: BeautifulSoup) -> Iterator[str]:
    """Roles that nobody resolved, and Sphinx's own messages."""
    for message in page.select(".system-message, .problematic"):
        yield f"holds a message of the build: {' '.join(message.get_text().split())[:80]}"
    for text in page.find_all(string=ROLE):
        if isinstance(text, PreformattedString) or any(map(_is_code, text.parents)):
            continue
        if text.rstrip().endswith("}") and getattr(text.next_sibling, "name", "") != "code":
            continue
        yield f"holds an unresolved role: {' '.join(text.split())[-60:]}"


def _is_code(tag: Tag) -> bool:
    return tag.name in ("pre", "code", "script", "style") or "math" in tag.get("class", ())


def image_faults(page: BeautifulSoup) -> Iterator[str]:
    for image in page.find_all("img"):
        alt = image.get("alt", "").strip()
        if not alt or alt == image.get("src"):
            yield f"has an image without alternative text: {image.get('src', '')[:80]}"


# --- scripts --------------------------------------------------------------------------------------

SCRIPT_LINKS = ("href", "xlink:href", "src", "action", "formaction", "data")


def script_faults(page: BeautifulSoup, text: str) -> Iterator[str]:
    """A policy that is not the page's own, and whatever would run without it."""
    if not is_protected(text):
        yield "does not carry the content security policy of the book"
    own = own_scripts(text)
    for tag in page.find_all(True):
        inline = tag.name == "script" and not tag.has_attr("src")
        if inline and tag.get("type") not in DATA_TYPES and tag.get_text() not in own:
            yield f"holds a script: {' '.join(tag.get_text().split())[:60]}"
        for attribute, value in tag.attrs.items():
            if attribute.startswith("on"):
                yield f"has an event handler, {attribute} of {tag.name}"
            elif attribute in SCRIPT_LINKS and re.match(r"[\s\x00-\x1f]*javascript:", value, re.I):
                yield f"has a script as {attribute} of {tag.name}"


# --- links ----------------------------------------------------------------------------------------

# What a <link> may be for another host to be asked ahead of any click, whatever the policy says.
AHEAD = {"preconnect", "dns-prefetch", "prefetch", "prerender", "preload", "modulepreload"}


def leaving_faults(page: BeautifulSoup) -> Iterator[str]:
    """What no policy stops: connections opened ahead, and a page that sends its reader away. All
    other requests to other hosts are stopped by the policy, and counted by the browser tests."""
    for tag in page.find_all("link", href=True):
        if AHEAD & {rel.lower() for rel in tag.get("rel", ())} and urlsplit(tag["href"]).netloc:
            yield f"requests {tag['href']}"
    for tag in page.select('meta[http-equiv="refresh" i]'):
        yield f"sends its reader away: {tag.get('content', '')}"


def link_faults(html: Path, page: Page) -> Iterator[str]:
    """Links and files inside the book that lead nowhere."""
    for tag in page.soup.find_all(lambda tag: tag.has_attr("href") or tag.has_attr("src")):
        address = tag.get("href") or tag.get("src")
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not address or tag.name == "base":
            continue
        if parts.path.startswith("/"):
            yield f"links to {address}, which is not relative to the page"
            continue
        target = (page.path.parent / unquote(parts.path) if parts.path else page.path).resolve()
        if target.is_dir():
            target /= "index.html"
        if not target.is_file() or not target.is_relative_to(html.resolve()):
            yield f"links to {address}, which is not in the book"
        elif tag.name == "a" and parts.fragment and target.suffix == ".html":
            names = {parts.fragment, unquote(parts.fragment)}
            if not names & read_page(target).anchors:
                yield f"links to {address}, where that place is not"
