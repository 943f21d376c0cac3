"""Maps that a reader moves, such as a matrix while it is learnt. Bars that move are
`replib.figures.slider`."""

import html
import json
from collections.abc import Mapping, Sequence

from IPython.display import HTML
from jaxtyping import Float
from torch import Tensor

from replib.errors import UsageError


def maps(
    shown: Mapping[str, Float[Tensor, "_ row column"]],
    steps: Sequence[str],
    what: str,
    said: Sequence[str],
    *,
    start: int | None = None,
) -> HTML:
    """Maps side by side under one slider: {title: its values at each step, or once if they stay},
    on one scale of colours for all, blue below 0 and orange above. `what` names the quantity of the
    steps, `said` puts each step into words for a screen reader, and `start` is shown first, the
    last step if None.

    The data are in the page, and the book's own maps.js moves them, without a server. Elsewhere, as
    in Jupyter, a sentence says that the plain figure beside it shows the same. Raises UsageError
    for maps that do not have a value for each step.
    """
    lengths = {len(steps), len(said), *(len(v) for v in shown.values() if len(v) != 1)}
    if len(lengths) > 1:
        raise UsageError(f"maps: {sorted(lengths)} steps, texts and values; give as many of each")
    limit = max(float(values.abs().max()) for values in shown.values()) or 1.0
    rounded = {
        title: [[[round(x, 3) for x in row] for row in step] for step in values.tolist()]
        for title, values in shown.items()
    }
    data = {"steps": list(steps), "said": list(said), "limit": limit, "maps": rounded}
    # Strict: a value that is not finite would stop the script in the page.
    packed = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # cannot end the script
    last = len(steps) - 1
    first = last if start is None else start
    return HTML(_MAPS.format(what=html.escape(what), start=first, last=last, data=packed))


_MAPS = """<div class="maps">
<p class="maps-still">In the book this figure moves; the plain figure beside it shows the same.</p>
<div class="maps-moving" hidden>
<label>{what}: <output></output>
<input type="range" min="0" max="{last}" value="{start}" aria-label="{what}"></label>
<div class="maps-row" role="img"></div>
</div>
<script type="application/json">{data}</script>
</div>"""
