"""Numbers that are none (NaN, infinite) end a run before they decide anything: the largest of them
is nothing, and yet an argmax names one."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from replib.errors import UsageError, first_line


def is_finite(values: Tensor) -> bool:
    """Are all values numbers? Their sum says so without a mask of their size; where it overflows,
    each is looked at."""
    values = values.detach()
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def check_logits(logits: Tensor, of: str = "the logits", dtype: torch.dtype | None = None) -> None:
    """Raises UsageError for logits that are not all finite; `dtype` is what they were computed in,
    where that is not their own."""
    if not is_finite(logits):
        dtype = dtype or logits.dtype
        raise UsageError(f"{of} are not all finite (NaN or infinite), computed in {_advice(dtype)}")


def _advice(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        return f"{name}, which ends at 65504; float32 and bfloat16 are known to work"
    return f"{name}; float32 with sound weights is known to work"


def check_weights(model: PreTrainedModel, name: str) -> None:
    """Raises UsageError for a weight with values that are not finite, by the name of the weight."""
    for key, weight in model.named_parameters():
        if not is_finite(weight):
            n, of = int((~weight.isfinite()).sum()), weight.numel()
            problem = f"{n} of the {of} values of its weight {key!r} are NaN or infinite"
            raise UsageError(f"model {name!r}: {problem}, in {_advice(weight.dtype)}")


def watch_logits(model: PreTrainedModel, name: str) -> None:
    """From now on a forward pass whose logits are not all finite raises UsageError, whoever asked
    for it: one hook on the module that every pass ends in. The logits stay as they are."""

    def check(module: torch.nn.Module, args: tuple, out: Tensor) -> None:
        check_logits(out, f"model {name!r}: its logits")

    model.get_output_embeddings().register_forward_hook(check)


def try_pass(
    model: PreTrainedModel, blocks: Iterable[torch.nn.Module], ids: list[int], name: str
) -> None:
    """One forward pass of some tokens. UsageError where it fails; where the logits, which are
    watched, are not finite, it names the first of the `blocks` that has such an output."""
    bad: list[int] = []

    def look(block: torch.nn.Module, args: tuple, out: Tensor | tuple | list) -> None:
        if not is_finite(out[0] if isinstance(out, (tuple, list)) else out):  # a list: GPT-1
            bad.append(places[block])

    places = {block: i for i, block in enumerate(blocks)}
    hooks = [block.register_forward_hook(look) for block in places]
    tokens = torch.tensor([ids], device=model.device)
    try:
        with torch.inference_mode():
            model(tokens, use_cache=False)
    except UsageError as error:
        where = f"layer {bad[0]} is the first with such an output" if bad else "no layer's are"
        raise UsageError(f"{first_line(error)}; {where}") from None
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"model {name!r} cannot read a text: {problem}") from error
    finally:
        for hook in hooks:
            hook.remove()
