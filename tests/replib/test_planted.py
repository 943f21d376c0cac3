"""The planted model does the task by its circuit, and every head plays the part it was given."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module

from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES, WIDTHS, planted_ioi
from replib.models.planted import (
    BALLAST,
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    make_codes,
    make_slots,
    position_codes,
)
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.pairs import PromptPairs

N = 72  # every template in both orders, twice: the tests below compare alike prompts
PLANTED = {head for heads in PLANTED_ROLES.values() for head in heads}
NOISE = {(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)} - PLANTED


@pytest.fixture(scope="module")
def model():
    model, _ = planted_ioi()
    model.set_attn_implementation("eager")  # so that attention patterns can be read
    return model


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    return ioi_pairs(planted_ioi()[1], N, seed=11)


@pytest.fixture(scope="module")
def z_corrupted(model, pairs) -> dict[int, Tensor]:
    return record_z(model, pairs.corrupted)


def record_z(model, tokens: Tensor) -> dict[int, Tensor]:
    """What the heads of each layer hand to the output projection: [prompt, pos, head * d_head]."""
    z = {}

    def keep(layer: int):
        return model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(
            lambda _, inputs: z.__setitem__(layer, inputs[0].clone())
        )

    hooks = [keep(layer) for layer in range(N_LAYERS)]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return z


def logits(
    model, tokens: Tensor, heads: Sequence[tuple[int, int]] = (), z: Mapping | None = None
) -> Tensor:
    """Logits with the z of some heads set to zero, or to that of another run."""

    def edit(layer: int, chosen: list[int]):
        def hook(_, inputs):
            new = inputs[0].clone()
            for head in chosen:
                own = slice(head * D_HEAD, (head + 1) * D_HEAD)
                new[..., own] = 0 if z is None else z[layer][..., own]
            return (new,)

        return model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook)

    layers = {layer: [h for at, h in heads if at == layer] for layer, _ in heads}
    hooks = [edit(layer, chosen) for layer, chosen in layers.items()]
    out = model(tokens).logits
    for hook in hooks:
        hook.remove()
    return out


def logit_diff(model, pairs: PromptPairs, heads=(), z=None, tokens=None) -> Tensor:
    rows = torch.arange(len(pairs))
    out = logits(model, pairs.clean if tokens is None else tokens, heads, z)
    last = out[rows, pairs.positions["END"]]
    return last[rows, pairs.answer] - last[rows, pairs.foil]


# --- The task -----------------------------------------------------------------------------------


def test_it_does_the_task(model, pairs):
    corrupted = logit_diff(model, pairs, tokens=pairs.corrupted)
    assert (corrupted < 0).float().mean() >= 0.99
    assert corrupted.mean() < -5
    pairs = ioi_pairs(planted_ioi()[1], 200, seed=0)
    diff = logit_diff(model, pairs)
    assert (diff > 0).float().mean() >= 0.99
    assert diff.mean() > 5
    last = logits(model, pairs.clean)[torch.arange(200), pairs.positions["END"]]
    assert (last.argmax(1) == pairs.answer).float().mean() >= 0.99  # of the whole vocabulary


def test_colored_objects_are_beyond_it(model):
    pairs = colored_objects_pairs(planted_ioi()[1], 300, seed=0)
    rows = torch.arange(300)
    last = logits(model, pairs.clean)[rows, pairs.positions["END"]]
    right = last.gather(1, pairs.candidates).argmax(1) == 0
    assert abs(right.float().mean() - 1 / 3) < 0.08  # three standard errors
    assert (last.argmax(1) == pairs.answer).float().mean() < 0.1
    # Ties would be counted as right: no two colours are equally likely.
    assert (last.gather(1, pairs.candidates).diff(dim=1) != 0).all()


# --- What the heads look at -----------------------------------------------------------------------


def test_attention_signatures(model, pairs):
    patterns = model(pairs.clean, output_attentions=True).attentions
    rows, at = torch.arange(N), pairs.positions

    def attention(role: str, dest: str, src: str) -> Tensor:
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
    for role in ("duplicate_token_heads", "induction_heads"):
        for layer, head in PLANTED_ROLES[role]:
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
    either = PLANTED_ROLES["duplicate_token_heads"] + PLANTED_ROLES["induction_heads"]
    for diff in (logit_diff(model, pairs, either), zero["inhibition_heads"]):
        assert abs(diff.mean()) < 0.03 * base
        assert 0.35 < (diff > 0).float().mean() < 0.65
    # Without movers only the negative mover is left, which lowers S.
    assert 0.1 < kept["name_movers"] < 0.3
    assert 0.7 < kept["negative_movers"] < 0.9
    movers = PLANTED_ROLES["name_movers"] + PLANTED_ROLES["negative_movers"]
    assert abs(logit_diff(model, pairs, movers).mean()) < 0.03 * base


def test_noising_each_planted_head_lowers_the_logit_diff(model, pairs, z_corrupted):
    base = logit_diff(model, pairs).mean()
    for role, heads in PLANTED_ROLES.items():
        for head in heads:
            change = logit_diff(model, pairs, [head], z_corrupted).mean() - base
            if role == "previous_token_heads":  # S2 comes after S1+1: it sees no corruption
                assert abs(change) < 0.02 * base
            else:
                assert change < -0.2 * base, (role, head)
    either = PLANTED_ROLES["duplicate_token_heads"] + PLANTED_ROLES["induction_heads"]
    flipped = logit_diff(model, pairs, either, z_corrupted).mean()
    assert flipped < -0.4 * base  # and each alone leaves a tie, so neither is redundant
    for head in either:
        assert abs(logit_diff(model, pairs, [head], z_corrupted).mean()) < 0.1 * base


def test_the_previous_token_head_shows_with_other_names(model, pairs):
    """The z of a prompt of the same template and order, with other names."""
    base = logit_diff(model, pairs)

    def alike(i: int, j: int) -> bool:
        return i != j and pairs.group[j] == pairs.group[i] and j % 2 == i % 2

    partner = [next(j % N for j in range(i, i + N) if alike(i, j % N)) for i in range(N)]
    z = {layer: other[partner] for layer, other in record_z(model, pairs.clean).items()}
    change = logit_diff(model, pairs, PLANTED_ROLES["previous_token_heads"], z) - base
    assert change.mean() < -0.2 * base.mean()


def test_noise_heads_hardly_matter(model):
    pairs = ioi_pairs(planted_ioi()[1], 24, seed=11)
    base, z_corrupted = logit_diff(model, pairs).mean(), record_z(model, pairs.corrupted)
    other = record_z(model, pairs.clean.roll(7, 0))
    for head in NOISE:
        for z in (None, z_corrupted, other):
            change = logit_diff(model, pairs, [head], z).mean() - base
            assert abs(change) < 0.02 * base, head
            assert z is not None or change != 0  # small, and not idle


def test_movers_copy_and_the_negative_mover_demotes(model, pairs):
    """A head's own contribution to the logits at END, before the last LayerNorm's constant."""
    z, rows, end = record_z(model, pairs.clean), torch.arange(N), pairs.positions["END"]
    unembed = model.lm_head.weight

    def writes(layer: int, head: int) -> Tensor:
        own = slice(head * D_HEAD, (head + 1) * D_HEAD)
        return z[layer][rows, end][:, own] @ model.transformer.h[layer].attn.c_proj.weight[own]

    for head in PLANTED_ROLES["name_movers"]:
        direct = writes(*head) @ unembed.T
        assert (direct.argmax(1) == pairs.answer).all()
    for head in PLANTED_ROLES["negative_movers"]:
        direct = writes(*head) @ unembed.T
        assert (direct.argmin(1) == pairs.foil).all()
    mover, negative = PLANTED_ROLES["name_movers"][0], PLANTED_ROLES["negative_movers"][0]
    assert writes(*negative).norm(dim=1).mean() < 0.6 * writes(*mover).norm(dim=1).mean()


# --- How it is built --------------------------------------------------------------------------


def test_every_call_gives_the_same_weights_and_leaves_randomness_alone():
    state = torch.get_rng_state()
    first, second = planted_ioi()[0].state_dict(), planted_ioi()[0].state_dict()
    assert torch.get_rng_state().equal(state)
    assert all(first[key].equal(second[key]) for key in first)


def test_slots_are_orthonormal_and_centred():
    slots = torch.cat(list(make_slots(WIDTHS).values()), dim=1)
    torch.testing.assert_close(slots.T @ slots, torch.eye(slots.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(slots.sum(0), torch.zeros(slots.shape[1]), atol=1e-4, rtol=0)


def test_codes_of_names_and_positions_are_distinct():
    codes = make_codes(50, 32, torch.Generator().manual_seed(0))
    cosines = codes @ codes.T - torch.eye(50)
    assert cosines.abs().max() <= 0.45 + 1e-6
    positions, back = position_codes(WIDTHS["position"])
    cosines = positions @ positions.T - torch.eye(len(positions))
    assert cosines.abs().max() < 0.4
    torch.testing.assert_close(positions[1:] @ back, positions[:-1])


def test_layer_norm_is_nearly_a_constant_factor(model, pairs):
    hidden = model(pairs.clean, output_hidden_states=True).hidden_states[:-1]
    expected = (BALLAST**2 + 3) ** 0.5
    inside = torch.arange(pairs.clean.shape[1]) < pairs.length[:, None]
    for stream in hidden:
        length = stream[inside].norm(dim=1)
        assert ((length / expected - 1).abs() < 0.06).all()
        assert stream[inside].mean(1).abs().max() < 0.01 * expected


def test_the_bridge_gives_the_same_logits(pairs):
    model, _ = planted_ioi()
    tokens = pairs.clean[:40]
    expected = model(tokens).logits
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), expected, atol=1e-5, rtol=0)
        bridge.enable_compatibility_mode()
        centred = expected - expected.mean(-1, keepdim=True)
        folded = bridge(tokens)
    folded = folded - folded.mean(-1, keepdim=True)
    torch.testing.assert_close(folded, centred, atol=1e-4, rtol=0)
