"""How much is computed at once, where memory is less, or more, than the modules expect."""

import os
import sys

from replib.errors import UsageError

VARIABLE = "REPLIB_BATCH_SCALE"  # set by the runner


# (module, the limit in it); those that a chapter has not imported do not matter to it.
_LIMITS = (
    ("interventions", "MAX_ROWS"),
    ("interventions", "MAX_TOKENS"),
    ("interventions", "MAX_KEPT_BYTES"),
    ("generation", "MAX_TOKENS"),
    ("text_copying", "MAX_TOKENS"),
    ("steering", "ROWS"),
)


def fit_batches() -> float:
    """Multiply the limits of the modules imported so far by REPLIB_BATCH_SCALE; returns it.

    Batches change no number but for rounding. Raises UsageError for a scale that is not above 0.
    """
    text = os.environ.get(VARIABLE, "1")
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < 1000:
        raise UsageError(f"{VARIABLE}={text!r} is not a number above 0")
    for name, limit in _LIMITS if scale != 1 else ():
        if (module := sys.modules.get(f"{__package__}.{name}")) is not None:
            setattr(module, limit, max(1, int(getattr(module, limit) * scale)))
    return scale
