"""How much is computed at once, where memory is less, or more, than the modules expect."""

import os

from replib.errors import UsageError

VARIABLE = "REPLIB_BATCH_SCALE"  # set for a run, before it starts


def at_once(limit: int) -> int:
    """The size of a batch: `limit`, made smaller or larger by REPLIB_BATCH_SCALE. Batches change no
    number but for rounding. Raises UsageError for a scale that is not above 0."""
    text = os.environ.get(VARIABLE, "1")
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < 1000:
        raise UsageError(f"{VARIABLE}={text!r} is not a number above 0")
    return max(1, int(limit * scale))
