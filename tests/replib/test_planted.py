"""The planted model does the task by its circuit, and every head plays the part it was given.

That a chapter's own method finds these heads is tested in chapters/test_controls.py.
"""

from contextlib import contextmanager

import pytest
import torch

from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES, planted_ioi
from replib.models.planted import D_HEAD, N_HEADS, N_LAYERS
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer

N = 72  # every template in both orders, twice: the tests below compare alike prompts
WORD = word_tokenizer()
PLANTED = {head for heads in PLANTED_ROLES.values() for head in heads}
NOISE = {(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)} - PLANTED
EITHER = PLANTED_ROLES["duplicate_token_heads"] + PLANTED_ROLES["induction_heads"]


@pytest.fixture(scope="module")
def model():
    model, _ = planted_ioi()
    model.set_attn_implementation("eager")  # so that attention patterns can be read
    return model


@pytest.fixture(scope="module")
def pairs():
    return ioi_pairs(WORD, N, seed=11)


@pytest.fixture(scope="module")
def z_corrupted(model, pairs):
    return record_z(model, pairs.corrupted)


@contextmanager
def z_through(model, function):
    """In each layer `function(layer, z)` sees what the heads hand to the output projection,
    [prompt, pos, head * d_head], and may return another."""
    hooks = [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, inputs, layer=layer: function(layer, inputs[0])
        )
        for layer, block in enumerate(model.transformer.h)
    ]
    yield
    for hook in hooks:
        hook.remove()


def record_z(model, tokens):
    """{layer: what its heads hand to the output projection}."""
    z = {}
    with z_through(model, lambda layer, value: z.update({layer: value.clone()})):
        model(tokens)
    return z


def end_logits(model, pairs, heads=(), z=None, tokens=None):
    """Logits at END [prompt, d_vocab] with the z of some heads set to zero, or to another run's."""

    def edit(layer, value):
        value = value.clone()
        for head in [head for at_layer, head in heads if at_layer == layer]:
            own = slice(head * D_HEAD, (head + 1) * D_HEAD)
            value[..., own] = 0 if z is None else z[layer][..., own]
        return value

    with z_through(model, edit):
        logits = model(pairs.clean if tokens is None else tokens).logits
    return logits[torch.arange(len(pairs)), pairs.positions["END"]]


def logit_diff(model, pairs, heads=(), z=None, tokens=None):
    rows = torch.arange(len(pairs))
    last = end_logits(model, pairs, heads, z, tokens)
    return last[rows, pairs.answer] - last[rows, pairs.foil]


# --- The task -----------------------------------------------------------------------------------


def test_it_does_the_task(model, pairs):
    corrupted = logit_diff(model, pairs, tokens=pairs.corrupted)
    assert (corrupted < 0).float().mean() >= 0.99
    assert corrupted.mean() < -5
    pairs = ioi_pairs(WORD, 200, seed=0)
    diff = logit_diff(model, pairs)
    assert (diff > 0).float().mean() >= 0.99
    assert diff.mean() > 5
    best = end_logits(model, pairs).argmax(1)  # of the whole vocabulary
    assert (best == pairs.answer).float().mean() >= 0.99


def test_colored_objects_are_beyond_it(model):
    pairs = colored_objects_pairs(WORD, 300, seed=0)
    last = end_logits(model, pairs)
    among = last.gather(1, pairs.candidates)
    assert abs((among.argmax(1) == 0).float().mean() - 1 / 3) < 0.08  # three standard errors
    assert (last.argmax(1) == pairs.answer).float().mean() < 0.1
    assert (among.diff(dim=1) != 0).all()  # a tie would be counted as right


# --- What the heads look at -----------------------------------------------------------------------


def test_attention_signatures(model, pairs):
    patterns = model(pairs.clean, output_attentions=True).attentions
    rows, at = torch.arange(N), pairs.positions

    def attention(role, dest, src):
        return torch.stack(
            [patterns[layer][rows, head, at[dest], at[src]] for layer, head in PLANTED_ROLES[role]]
        )

    for layer, head in PLANTED_ROLES["previous_token_heads"]:
        assert patterns[layer][:, head].diagonal(-1, 1, 2).min() > 0.99
    assert attention("duplicate_token_heads", "S2", "S1").min() > 0.99
    assert attention("induction_heads", "S2", "S1+1").min() > 0.99
    assert attention("inhibition_heads", "END", "S2").min() > 0.99
    assert attention("name_movers", "END", "IO").min() > 0.8
    assert attention("name_movers", "END", "IO").mean() > 0.98
    assert attention("negative_movers", "END", "S2").min() > 0.99
    # Names that have not been seen before do not set the duplicate-token and induction heads off.
    for layer, head in EITHER:
        for name in ("IO", "S1", "END"):
            assert patterns[layer][rows, head, at[name], 0].min() > 0.99
    # The noise heads show none of these.
    for layer, head in NOISE:
        pattern = patterns[layer][:, head]
        for dest, src in (("S2", "S1"), ("S2", "S1+1"), ("END", "S2"), ("END", "IO")):
            assert pattern[rows, at[dest], at[src]].mean() < 0.5


# --- What the heads do --------------------------------------------------------------------------


def test_zero_ablating_each_role_does_what_the_circuit_predicts(model, pairs):
    base = logit_diff(model, pairs).mean()
    zero = {role: logit_diff(model, pairs, heads) for role, heads in PLANTED_ROLES.items()}
    kept = {role: float(diff.mean() / base) for role, diff in zero.items()}
    # Two pathways to "S is the one named twice": with either gone the signal has half its strength.
    assert 0.5 < kept["duplicate_token_heads"] < 0.9
    assert 0.5 < kept["induction_heads"] < 0.9
    # Without the previous-token head the induction head finds nothing: the same loss.
    assert kept["previous_token_heads"] == pytest.approx(kept["induction_heads"], abs=0.02)
    # With both gone, or without inhibition heads, nothing tells IO from S.
    for diff in (logit_diff(model, pairs, EITHER), zero["inhibition_heads"]):
        assert abs(diff.mean()) < 0.03 * base
        assert 0.35 < (diff > 0).float().mean() < 0.65
    # Without movers only the negative mover is left, which lowers S.
    assert 0.1 < kept["name_movers"] < 0.3
    assert 0.7 < kept["negative_movers"] < 0.9
    movers = PLANTED_ROLES["name_movers"] + PLANTED_ROLES["negative_movers"]
    assert abs(logit_diff(model, pairs, movers).mean()) < 0.03 * base


def test_noising_each_planted_head_lowers_the_logit_diff(model, pairs, z_corrupted):
    base = logit_diff(model, pairs).mean()
    for head in PLANTED:
        noised = logit_diff(model, pairs, [head], z_corrupted).mean()
        if head in PLANTED_ROLES["previous_token_heads"]:  # S2 comes after S1+1: no corruption seen
            assert abs(noised - base) < 0.02 * base
        elif head in EITHER:  # each alone leaves a tie, so neither is redundant
            assert abs(noised) < 0.1 * base
        else:
            assert noised - base < -0.2 * base, head
    assert logit_diff(model, pairs, EITHER, z_corrupted).mean() < -0.4 * base


def test_the_previous_token_head_shows_with_other_names(model, pairs):
    """The z of a prompt of the same template and order, with other names."""
    alike = [(group, i % 2) for i, group in enumerate(pairs.group)]
    partner = [next(j for j in range(N) if j != i and alike[j] == alike[i]) for i in range(N)]
    z = {layer: other[partner] for layer, other in record_z(model, pairs.clean).items()}
    base = logit_diff(model, pairs)
    change = logit_diff(model, pairs, PLANTED_ROLES["previous_token_heads"], z) - base
    assert change.mean() < -0.2 * base.mean()


def test_noise_heads_hardly_matter(model):
    pairs = ioi_pairs(WORD, 24, seed=11)
    base, z_corrupted = logit_diff(model, pairs).mean(), record_z(model, pairs.corrupted)
    other = record_z(model, pairs.clean.roll(7, 0))
    for head in NOISE:
        for z in (None, z_corrupted, other):
            change = logit_diff(model, pairs, [head], z).mean() - base
            assert abs(change) < 0.02 * base, head
            assert z is not None or change != 0  # small, and not idle


def test_every_call_gives_the_same_weights_and_leaves_randomness_alone(model):
    state = torch.get_rng_state()
    again = planted_ioi()[0].state_dict()
    assert torch.get_rng_state().equal(state)
    assert all(again[key].equal(value) for key, value in model.state_dict().items())
