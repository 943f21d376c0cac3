"""Maps that a reader moves: what the page gets, and what is refused."""

import json
import re

import pytest
import torch

from replib.errors import UsageError
from replib.moving import maps


def test_a_page_gets_all_steps_of_a_map_and_one_of_a_map_that_stays() -> None:
    moving = torch.tensor([[[0.0, 1.0]], [[-2.0, 0.5]]])
    shown = {"learnt </script>": moving, "set": torch.ones(1, 1, 2)}
    text = maps(shown, ["0", "100"], 'Step "s"', ["nothing", "two"], start=0).data
    (packed,) = re.findall(r"json\">(.*)</script>", text)
    data = json.loads(packed)
    assert data["maps"]["learnt </script>"] == [[[0, 1]], [[-2, 0.5]]]
    assert data["maps"]["set"] == [[[1, 1]]]
    assert (data["limit"], data["steps"], data["said"]) == (2, ["0", "100"], ["nothing", "two"])
    assert 'max="1" value="0"' in text and "Step &quot;s&quot;" in text


def test_maps_without_a_value_for_each_step_are_refused() -> None:
    with pytest.raises(UsageError, match=r"maps: \[2, 3\] steps, texts and values"):
        maps({"a": torch.zeros(3, 1, 1)}, ["0", "1"], "Step", ["", ""])
    with pytest.raises(ValueError, match="JSON"):
        maps({"a": torch.full((1, 1, 1), float("nan"))}, ["0"], "Step", [""])
