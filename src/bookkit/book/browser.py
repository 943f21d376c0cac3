"""Chromium without a window: prints the built pages, and shows them to the checks."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replib.errors import UsageError

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The machine's own Chromium; playwright would download one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright, one process for all that is done with it.

    Raises:
        UsageError: if there is no Chromium on this machine.
    """
    path = find_chromium()
    if path is None:
        raise UsageError(f"no Chromium on this machine; looked for {', '.join(NAMES)}")
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    if os.name == "posix" and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def pages_of(html: Path) -> list[Path]:
    """Every page of a built book; what stands in `_static` are templates and files."""
    found = sorted(html.rglob("*.html"))
    return [path for path in found if "_static" not in path.relative_to(html).parts]
