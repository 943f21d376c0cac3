"""The fast scans give the library's logits and gradients, and leave the network as it was."""

import copy

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.scans import LONGEST, fast_scans
from replib.errors import UsageError

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
def test_the_network_is_left_as_it_was(kind):
    network = make(kind)
    before = copy.deepcopy(network.state_dict())
    mixer = network.backbone.layers[0].mixer
    with pytest.raises(ZeroDivisionError), fast_scans(network):
        assert "forward" in mixer.__dict__
        network(torch.zeros(1, 3, dtype=torch.long))
        raise ZeroDivisionError
    assert "forward" not in mixer.__dict__
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_calls_that_are_not_ours_go_to_the_library(kind):
    network = make(kind).eval()
    tokens = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0

    def said():
        with torch.no_grad():
            return network(tokens, attention_mask=mask), network(tokens, use_cache=True)

    expected = said()
    with fast_scans(network):
        found = said()
        with torch.no_grad():
            network(torch.zeros(1, LONGEST + 1, dtype=torch.long))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits)
    assert found[1].cache_params is not None


def test_layers_that_were_never_called_and_another_activation_are_refused():
    with pytest.raises(RuntimeError, match="2 of 2 layers"), fast_scans(make("mamba2")):
        pass
    network = make("mamba", hidden_act="gelu")
    with pytest.raises(UsageError, match="'gelu' is not supported"), fast_scans(network):
        pass


def test_a_network_without_scans_is_left_alone():
    network = build("lstm", 0)
    with fast_scans(network):
        assert network(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 30)
