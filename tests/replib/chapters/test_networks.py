"""The networks: causal, matched in size, positions and states as they say; the fast scans give the
library's logits and gradients, and leave a network as it was."""

import copy

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from replib.chapters.copying_mamba import networks as architectures
from replib.chapters.copying_mamba import strings
from replib.chapters.copying_mamba.networks import ARCHITECTURES, SMALL_STATES, STARTS, build, size
from replib.chapters.copying_mamba.scans import LONGEST, fast_scans, read_mamba2
from replib.errors import UsageError


def logits(network, tokens):
    with torch.no_grad():
        out = network.eval()(tokens)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("name", (*ARCHITECTURES, *SMALL_STATES))
def test_no_network_sees_what_comes_later(name):
    tokens = strings.copy(2, 6, torch.Generator().manual_seed(0)).tokens
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
    """But for Mamba's, which is wider, and larger by half."""
    sizes = {name: size(name, 20).parameters for name in ARCHITECTURES}
    wide = sizes.pop("mamba")
    assert max(sizes.values()) < 1.21 * min(sizes.values()) < wide < 1.8 * min(sizes.values())


@pytest.mark.parametrize("start", STARTS)
def test_architectures_of_one_width_start_at_comparable_scale(start):
    """What reads the residual stream, and embeddings: the scale of the start, on both sides."""
    scale, is_mimetic = STARTS[start]
    names = ("mamba2", "mamba", "hybrid") if is_mimetic else ARCHITECTURES
    for name in names:
        weights = dict(build(name, 0, start).named_parameters())
        reads = [key for key in weights if key.endswith(("q_proj.weight", "in_proj.weight"))]
        reads += [key for key in weights if "embed" in key or "weight_ih" in key or "qkv" in key]
        assert reads
        for key in reads:
            assert weights[key].std().item() == pytest.approx(scale, rel=0.1), (name, key)


def test_a_mimetic_start_keeps_the_state_and_reads_it_as_it_was_written():
    network = build("mamba2", 0, "m10").eval()
    mixer = network.backbone.layers[0].mixer
    hidden = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    _, _, b, c, _ = read_mamba2(mixer, hidden)
    assert torch.allclose(b, c)
    assert torch.allclose(torch.nn.functional.softplus(mixer.dt_bias), torch.ones(8), atol=1e-5)
    assert (-mixer.A_log.exp()).exp().tolist() == pytest.approx([0.99] * 8)
    wide = build("mamba", 0, "m10").backbone.layers[0].mixer
    assert torch.equal(wide.x_proj.weight[-32:], wide.x_proj.weight[-64:-32])
    with pytest.raises(UsageError, match="mimetic start is for"):
        build("rope", 0, "m10")
    with pytest.raises(UsageError, match="start 's20': choose one of: s02"):
        build("rope", 0, "s20")


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


def test_the_state_of_attention_grows_and_an_unknown_architecture_is_refused():
    assert size("rope", 40).state_bits == 2 * size("rope", 20).state_bits
    assert size("hybrid", 40).state_bits > size("hybrid", 20).state_bits
    assert architectures.longest_copy(47) == pytest.approx(9.999, abs=1e-2)
    with pytest.raises(UsageError, match="'gru': choose one of: rope"):
        build("gru", 0)


# --- Fast scans -----------------------------------------------------------------------------------

COMMON = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "use_cache": False}


def make(kind, **settings):
    torch.manual_seed(0)
    if kind == "mamba":
        network = MambaForCausalLM(MambaConfig(**COMMON, **settings))
    else:
        shape = {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16}
        network = Mamba2ForCausalLM(Mamba2Config(**COMMON, **(shape | settings)))
    for p in network.parameters():  # away from values at which terms vanish
        p.data += 0.1 * torch.randn_like(p)
    return network


def logits_and_grads(network, tokens):
    network.zero_grad()
    logits = network(tokens).logits
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mamba", {"state_size": 4}),
        ("mamba", {"state_size": 16, "use_conv_bias": False}),
        ("mamba2", {"n_groups": 2}),
        ("mamba2", {"state_size": 3, "num_heads": 2, "head_dim": 16}),
        ("mamba2", {"time_step_limit": (0.02, 0.5)}),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 43, 131])
def test_logits_and_gradients_are_the_librarys(kind, settings, length):
    network = make(kind, **settings)
    tokens = torch.randint(30, (3, length), generator=torch.Generator().manual_seed(length))
    expected, expected_grads = logits_and_grads(network, tokens)
    with fast_scans(network):
        logits, grads = logits_and_grads(network, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_strong_decay_does_not_overflow():
    network = make("mamba2", time_step_limit=(0.0, float("inf")))
    for layer in network.backbone.layers:
        layer.mixer.A_log.data.fill_(9.0)  # A = -8103
    with fast_scans(network):
        logits, grads = logits_and_grads(network, torch.zeros(1, 60, dtype=torch.long))
    assert logits.isfinite().all() and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_other_calls_go_to_the_library_and_the_network_is_left_as_it_was(kind):
    network = make(kind).eval()
    before, mixer = copy.deepcopy(network.state_dict()), network.backbone.layers[0].mixer
    tokens = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0

    def said():
        with torch.no_grad():
            return network(tokens, attention_mask=mask), network(tokens, use_cache=True)

    expected = said()
    with pytest.raises(ZeroDivisionError), fast_scans(network):
        assert "forward" in mixer.__dict__
        found = said()
        with torch.no_grad():
            network(torch.zeros(1, LONGEST + 1, dtype=torch.long))
        raise ZeroDivisionError
    assert "forward" not in mixer.__dict__
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits)
    assert found[1].cache_params is not None


def test_layers_that_were_never_called_and_another_activation_are_refused():
    with pytest.raises(RuntimeError, match="2 of 2 layers"), fast_scans(make("mamba2")):
        pass
    network = make("mamba", hidden_act="gelu")
    with pytest.raises(UsageError, match="'gelu' is not supported"), fast_scans(network):
        pass
