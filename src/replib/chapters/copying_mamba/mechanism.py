"""How a small network copies: the same questions to attention and to state-space layers.

Networks are wrapped by TransformerLens' bridge; strings are those of the task `copy`. Values stay
one per string.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.strings import N_LETTERS, Strings
from replib.errors import UsageError
from replib.interventions.network import Head
from replib.metrics import head_label

Part = tuple[int, int | None]  # a head, (layer, head), or a whole layer, (layer, None)


def wrapped(network: nn.Module) -> TransformerBridge:
    """The network with TransformerLens' hooks. State-space layers step through time, slowly, so
    that their states can be read and written. Raises UsageError for an LSTM, which has none."""
    if not hasattr(network, "config"):
        raise UsageError(f"a network of type {type(network).__name__} has no hooks")
    model = build_bridge_from_module(network, type(network).__name__, hf_config=network.config)
    for block in model.blocks:
        if hasattr(block, "mixer"):
            block.mixer.eager_scan = True
    return model


def has_heads(model: TransformerBridge) -> bool:
    return hasattr(model.blocks[0], "attn")


def _right_with(
    model: TransformerBridge, strings: Strings, name: str, edit: Callable[[Tensor], None]
) -> Float[Tensor, " string"]:
    """Character accuracy of each string while `edit` changes a clone of one activation in place.
    Raises RuntimeError where that was never computed."""
    fired = False

    def hook(value: Tensor, hook: object) -> Tensor:
        nonlocal fired
        fired = True
        out = value.clone()
        edit(out)
        return out

    with model.hooks(fwd_hooks=[(name, hook)]):
        right = copying.teacher_forced(model, strings).double().mean(1)
    if not fired:
        raise RuntimeError(f"the hook {name} did not fire")
    return right


def _queries(strings: Strings) -> Int[Tensor, " letter"]:
    """The positions at which the model says the letters of the answer, without the final `.`."""
    n_positions = strings.tokens.shape[1]
    return torch.arange(n_positions - strings.n_answer - 1, n_positions - 2)


def previous_token_scores(
    model: TransformerBridge, strings: Strings
) -> Float[Tensor, "layer head string"]:
    """Mean attention of all tokens but the first to the one just before."""
    return _patterns(model, strings).diagonal(-1, dim1=-2, dim2=-1).mean(-1)


def lookup_scores(model: TransformerBridge, strings: Strings) -> Float[Tensor, "layer head string"]:
    """Mean attention, while the copy is written, to the letter that is to be said next: the
    induction score of each head on these strings."""
    pattern = _patterns(model, strings)[..., _queries(strings), :]
    source = strings.source.expand(*pattern.shape[:2], -1, -1)
    return pattern.gather(-1, source[..., None])[..., 0].mean(-1)


def _patterns(
    model: TransformerBridge, strings: Strings
) -> Float[Tensor, "layer head string dest src"]:
    with torch.no_grad():
        _, cache = model.run_with_cache(strings.tokens)
    layers = range(model.cfg.n_layers)
    found = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in layers])
    return found.transpose(1, 2)


def best_head(scores: Float[Tensor, "layer head string"]) -> tuple[Head, float]:
    """The head with the largest score, mean over strings, and that score."""
    mean = scores.mean(-1)
    layer, head = divmod(int(mean.argmax()), mean.shape[1])
    return (layer, head), float(mean.max())


def parts(model: TransformerBridge) -> dict[str, Part]:
    """By label, what can be taken out of a network: each attention head, or each whole layer of a
    network without attention."""
    layers = range(model.cfg.n_layers)
    if not has_heads(model):
        return {f"layer {layer}": (layer, None) for layer in layers}
    heads = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
    return {head_label(head): head for head in heads}


def accuracy_with(
    model: TransformerBridge, strings: Strings, part: Part, edit: Callable[[Tensor], None]
) -> Float[Tensor, " string"]:
    """Character accuracy of each string while `edit` changes the output of one part in place: a
    head's z, or what a whole attention or state-space layer writes, [string pos d]. What it changes
    is a copy; afterwards the model is as it was."""
    layer, head = part
    whole = "hook_attn_out" if has_heads(model) else "hook_mixer_out"
    name = f"blocks.{layer}.{whole if head is None else 'attn.hook_z'}"
    return _right_with(
        model, strings, name, lambda out: edit(out if head is None else out[:, :, head])
    )


@dataclass(frozen=True)
class Spliced:
    """Half-written copies whose last letters were replaced by a run from elsewhere in the string.
    No letter of a string occurs twice, so that `content` and `position` differ."""

    tokens: Int[Tensor, "string pos"]  # $, the string, |, the half-written copy
    content: Int[Tensor, " string"]  # the letter that follows the run in the string
    position: Int[Tensor, " string"]  # the letter at which the copy had arrived


def spliced(n: int, length: int, run: int, generator: torch.Generator) -> Spliced:
    """`n` strings of `length` letters, copied half, whose last `run` letters come from elsewhere.
    Raises UsageError for a string that is too short, or longer than the alphabet."""
    if not 2 * run + 4 <= length <= N_LETTERS:
        raise UsageError(
            f"a string of {length} letters: give {2 * run + 4} to {N_LETTERS}, all different"
        )
    x = torch.rand(n, N_LETTERS, generator=generator).argsort(1)[:, :length]
    half = length // 2  # letters of the copy that are written
    elsewhere = torch.randint(0, half - run, (n,), generator=generator)
    later = torch.rand(n, generator=generator) < 0.5
    elsewhere = torch.where(later, half + 1 + elsewhere % (length - half - run - 1), elsewhere)
    rows = torch.arange(n)
    written = x[:, :half].clone()
    written[:, half - run :] = x[rows[:, None], elsewhere[:, None] + torch.arange(run)]
    bar = torch.full((n, 1), copying.SEPARATOR)
    tokens = torch.cat([torch.full((n, 1), copying.BOS), x, bar, written], 1)
    return Spliced(tokens, content=x[rows, elsewhere + run], position=x[:, half])


def moved(
    model: TransformerBridge, strings: Strings, letter: int
) -> Float[Tensor, "layer place string"]:
    """Where is the letter to be said, at its source or already at the query?

    In the corrupted string this letter of the source is another one. The clean residual of each
    layer (*denoising*) is put at the letter's source (place 0) or where it is to be said (place 1).
    `recovered` = (patched - corrupted) / (clean - corrupted), in the logit difference of the two
    letters; NaN for strings in which the corruption changes that by less than 1.
    """
    source, query = letter + 1, int(_queries(strings)[letter])
    clean, corrupted = strings.tokens, strings.tokens.clone()
    corrupted[:, source] = (corrupted[:, source] + 1) % N_LETTERS
    answer, foil = clean[:, source], corrupted[:, source]

    def logit_diff(logits: Tensor) -> Tensor:
        rows = torch.arange(len(answer))
        return (logits[rows, query, answer] - logits[rows, query, foil]).double()

    def put(clean: Tensor, at: int, value: Tensor, hook: object) -> Tensor:
        out = value.clone()
        out[:, at] = clean[:, at]
        return out

    with torch.no_grad():
        logits, cache = model.run_with_cache(clean)
        top, bottom = logit_diff(logits), logit_diff(model(corrupted))
        found = torch.full((model.cfg.n_layers, 2, len(clean)), torch.nan, dtype=torch.double)
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.hook_resid_post"
            for place, at in enumerate((source, query)):
                hooks = [(name, partial(put, cache[name], at))]
                found[layer, place] = logit_diff(model.run_with_hooks(corrupted, fwd_hooks=hooks))
    found = (found - bottom) / (top - bottom)
    return found.masked_fill((top - bottom) < 1, torch.nan)


def wiped(model: TransformerBridge, strings: Strings, layer: int) -> Float[Tensor, " string"]:
    """Character accuracy when the source's letters write nothing to the state of one layer."""
    _needs_state(model)
    source = slice(1, strings.n_answer)

    def wipe(out: Tensor) -> None:
        _time_second(out)[:, source] = 0

    return _right_with(model, strings, f"blocks.{layer}.mixer.hook_ssm_write", wipe)


def states(model: TransformerBridge, strings: Strings) -> Float[Tensor, "layer string feature"]:
    """The state of each layer at `|`, when the whole string has been read."""
    _needs_state(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(strings.tokens)
    layers = range(model.cfg.n_layers)
    found = [_time_second(cache[f"blocks.{i}.mixer.hook_ssm_state"]) for i in layers]
    return torch.stack([state[:, strings.n_answer].flatten(1) for state in found])


def _needs_state(model: TransformerBridge) -> None:
    if has_heads(model):
        raise UsageError("a Transformer has no state of fixed size")


def _time_second(value: Tensor) -> Tensor:
    """Mamba's bridge has [string channel pos state], Mamba-2's [string pos head channel state]."""
    return value.transpose(1, 2) if value.ndim == 4 else value


def read_letters(
    learn: Float[Tensor, "string feature"],
    letters: Int[Tensor, " string"],
    test: Float[Tensor, "other feature"],
    ridge: float = 1e-2,
) -> Int[Tensor, " other"]:
    """The letters that a linear read-out finds in states: ridge regression on one-hot letters in
    its dual form (many features, few strings). The ridge is a share of the mean squared norm."""
    middle = learn.mean(0)
    x, y = (learn - middle).double(), torch.nn.functional.one_hot(letters, N_LETTERS).double()
    gram = x @ x.T
    penalty = ridge * gram.diagonal().mean().clamp_min(1e-12)
    weights = torch.linalg.solve(gram + penalty * torch.eye(len(x)), y - y.mean(0))
    return ((test - middle).double() @ x.T @ weights + y.mean(0)).argmax(-1)
