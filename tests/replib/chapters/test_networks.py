"""The eight networks: causal, matched in size, positions and states as they say."""

import pytest
import torch

from replib.chapters.copying_mamba import networks as architectures
from replib.chapters.copying_mamba.networks import ARCHITECTURES, SMALL_STATES, build, size
from replib.chapters.copying_mamba.strings import copy
from replib.errors import UsageError


def logits(network, tokens):
    with torch.no_grad():
        out = network.eval()(tokens)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("name", (*ARCHITECTURES, *SMALL_STATES))
def test_no_network_sees_what_comes_later(name):
    tokens = copy(2, 6, torch.Generator().manual_seed(0)).tokens
    other = tokens.clone()
    other[:, 9] = (other[:, 9] + 1) % 26
    network = build(name, seed=0)
    before, after = logits(network, tokens), logits(network, other)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-5)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)


def test_a_seed_gives_one_network_and_leaves_the_global_generator_alone():
    for name in ARCHITECTURES:
        state = torch.get_rng_state()
        first, again, other = (list(build(name, seed).parameters()) for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state())
        assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))


def test_sizes_are_within_a_fifth_of_each_other():
    sizes = {name: size(name, 20).parameters for name in ARCHITECTURES}
    assert max(sizes.values()) < 1.21 * min(sizes.values()), sizes


def test_alibi_and_hard_alibi_by_hand():
    bias = architectures.alibi(2, 3)  # slopes 2^-4, 2^-8
    assert bias[0, 2].tolist() == [-2 / 16, -1 / 16, 0]
    assert bias[1, 2].tolist() == [-2 / 256, -1 / 256, 0]
    assert (bias[:, 0, 1:] < -1e30).all()
    bias = architectures.hard_alibi(4, 4)
    allowed = bias == 0
    assert allowed[0].tolist() == torch.eye(4, dtype=bool).tolist()  # itself only
    assert allowed[1].sum(-1).tolist() == [1, 2, 2, 2]  # and the one before
    assert allowed[2].tolist() == allowed[3].tolist() == torch.ones(4, 4).tril().bool().tolist()
    assert (bias[~allowed] < -1e30).all()


@pytest.mark.parametrize(("name", "sees_order"), [("rope", True), ("nope", False), ("alibi", True)])
def test_one_layer_sees_order_only_by_its_positions(name, sees_order):
    network = architectures._transformer(name, n_layers=1)
    network.apply(
        lambda m: torch.nn.init.normal_(m.weight, std=0.2) if hasattr(m, "weight") else None
    )
    there = logits(network, torch.tensor([[26, 1, 2, 3, 27]]))[0, -1]
    back = logits(network, torch.tensor([[26, 3, 1, 2, 27]]))[0, -1]
    assert torch.allclose(there, back, atol=1e-3) != sees_order


@pytest.mark.parametrize("name", ["mamba", "mamba2", "mamba2-4"])
def test_state_bits_are_those_that_the_library_keeps(name):
    network = build(name, seed=0).eval()
    cache = network(torch.zeros(1, 5, dtype=torch.long), use_cache=True).cache_params
    n = 0
    for layer in range(network.config.num_hidden_layers):
        n += cache.get_conv_state(layer, state_idx=0).numel()
        n += cache.get_recurrent_state(layer, state_idx=0).numel()
    assert size(name, 20) == size(name, 2000)
    assert size(name, 20).state_bits == 32 * n


def test_the_state_of_attention_grows():
    assert size("rope", 40).state_bits == 2 * size("rope", 20).state_bits
    assert size("hybrid", 40).state_bits > size("hybrid", 20).state_bits
    assert architectures.longest_copy(47) == pytest.approx(9.999, abs=1e-2)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UsageError, match="'gru': choose one of: rope"):
        build("gru", 0)
