"""Exact edits against hooks and whole forward passes, on small random models of four shapes."""

import dataclasses
import functools
import random

import pytest
import reference
import torch
from transformer_lens.tools.analysis import direct_logit_attribution

from replib.errors import UsageError
from replib.interventions import forward, head_edits, path_patching
from replib.interventions.head_edits import (
    HeadEdit,
    attention_from,
    attention_knockout,
    attention_row,
    frozen_norm,
    read,
    resample_ablate,
    scale_head,
    zero_ablate,
)
from replib.interventions.network import Network
from replib.interventions.path_patching import PathPatch, path_patch
from replib.models.tiny import tiny_model
from replib.prompts.ioi import ioi_pairs
from replib.prompts.pairs import PromptPairs
from replib.prompts.vocabulary import word_tokenizer

ARCHS = ("gpt2", "neox", "llama", "gemma3")
# Of layouts that are alike, LayerNorm with biases and grouped heads with norms around, one each.
FEW = [
    arch if arch in ("gpt2", "gemma3") else pytest.param(arch, marks=pytest.mark.slow)
    for arch in ARCHS
]
TOLERANCE = 1e-4  # logits
WORD = word_tokenizer()


@functools.cache
def network(arch: str) -> Network:
    return Network(tiny_model(arch, seed=1))


def make_pairs(seed: int, n: int = 4) -> PromptPairs:
    """Prompts of unequal lengths that differ at one position, with a set of positions too."""
    each = [2 * i + i % 2 for i in range(n)]  # of a template of its own, either name first
    pairs = ioi_pairs(WORD, 2 * n, seed)[each]
    pair = torch.stack([pairs.positions["S2"], pairs.positions["S2"] + 1], 1)
    pair[0, 1] = -1
    return dataclasses.replace(pairs, positions={**pairs.positions, "pair": pair})


COMPONENTS = ("q", "k", "v", "resid_post", "logits")
POSITIONS = ("END", "S2", "pair", "all")
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("arch", ARCHS)
def test_path_patch_agrees_with_hooks(arch, component, seed):
    """Every component in every architecture, and each of both at every position."""
    net, pairs = network(arch), make_pairs(seed)
    turn = ARCHS.index(arch) + COMPONENTS.index(component) + seed
    position, freeze_mlps = POSITIONS[turn % 4], turn % 3 == 0
    draw = random.Random(f"{arch} {component} {seed}")
    receivers = draw.sample([(1, 0), (1, 3), (2, 1), (3, 0), (3, 1), (3, 2)], draw.randint(1, 3))
    top = max(layer for layer, _ in receivers)
    if component == "logits":
        receivers, component, position, top = "logits", "q", "END", net.n_layers
    elif component == "resid_post":
        receivers, component = ("resid_post", top - 1), "q"
    sender = draw.choice(net.heads(below=top))
    way = (receivers, component, position)
    slow = reference.path_patch(net.model, pairs, [sender], *way, freeze_mlps)[0]
    for senders in (None, [sender]):  # all at once, and alone
        ours = path_patch(net, pairs, *way, senders, freeze_mlps)
        torch.testing.assert_close(ours.logit_diff[sender], slow, atol=TOLERANCE, rtol=0)
    assert ours.logit_diff.isnan().all(-1).sum() == net.n_layers * net.n_heads - 1


def test_batches_and_chunks_change_nothing(monkeypatch):
    net, pairs = network("gemma3"), make_pairs(5, n=7)
    whole = path_patch(net, pairs, "logits")
    edited = read(net, pairs, [HeadEdit(), zero_ablate([(1, 1)])], capture=True)
    for module in (path_patching, head_edits):  # each has the name of its own
        monkeypatch.setattr(module, "MAX_ROWS", 5)
    monkeypatch.setattr(forward, "MAX_TOKENS", 25)
    pieces = path_patch(net, pairs, "logits")
    assert torch.allclose(whole.logit_diff, pieces.logit_diff, atol=1e-5)
    again = read(net, pairs, [HeadEdit(), zero_ablate([(1, 1)])], capture=True)
    assert torch.allclose(edited.attribution, again.attribution, atol=1e-5)


def test_score_has_the_sign_of_support():
    """A head whose corruption lowers the logit difference supports the answer: score > 0."""
    result = PathPatch(
        logit_diff=torch.tensor([[[1.0, 2.0], [4.0, 6.0]]]),  # one layer, two heads, two prompts
        clean=torch.tensor([3.0, 4.0]),
        corrupted=torch.tensor([-3.0, -4.0]),
    )
    # gap of the means: −3.5 − 3.5 = −7; head 0: (−2, −2) / −7; head 1: (1, 2) / −7
    torch.testing.assert_close(result.effect()[0, 0], torch.tensor([2.0, 2.0]) / 7)
    torch.testing.assert_close(result.score()[0], torch.tensor([2.0, -1.5]) / 7)


@pytest.mark.parametrize("arch", FEW)
@pytest.mark.parametrize("everywhere", [False, True])
def test_edits_agree_with_hooks(arch, everywhere):
    net, pairs = network(arch), make_pairs(11)
    row = torch.zeros(pairs.clean.shape)
    row[:, 1], row[:, 0] = 0.25, 0.75
    edits = [
        HeadEdit(),
        zero_ablate([(0, 1), (2, 0)]),
        resample_ablate([(0, 0), (2, 3)]),
        scale_head((1, 3), -3.0),
    ]
    if not everywhere:
        edits += [
            attention_row([(1, 0), (2, 3)], row),
            attention_knockout([(1, 1), (2, 1)], pairs.positions["pair"]),
        ]
    ours = read(net, pairs, edits, everywhere=everywhere, correct=True, full_vocabulary=True)
    assert torch.equal(ours.correct, ours.top1 == pairs.answer)
    prompt = torch.arange(len(pairs))
    for i, edit in enumerate(edits):
        slow = reference.read(net.model, pairs, edit, everywhere)
        expected = slow[prompt, pairs.answer] - slow[prompt, pairs.foil]
        torch.testing.assert_close(ours.logit_diff[i], expected, atol=TOLERANCE, rtol=0)
        assert torch.equal(ours.top1[i], slow.argmax(-1))
        assert i == 0 or (ours.logit_diff[i] - ours.logit_diff[0]).abs().max() > 1e-3


def test_scaling_one_head_leaves_its_group_alone():
    """Llama and Gemma heads share value vectors: only the scaled head's write may change."""
    for arch in ("llama", "gemma3"):
        net, pairs = network(arch), make_pairs(2)
        both = read(net, pairs, [HeadEdit(), scale_head((2, 0), 2.0)], capture=True)
        # the norms' scales change with the edit, the proportions between heads only by it
        before, after = both.attribution[:, :, 2, :, 0]
        ratio = before / before[:, 1:2], after / after[:, 1:2]
        torch.testing.assert_close(ratio[1][:, 2:], ratio[0][:, 2:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ratio[1][:, 0], 2 * ratio[0][:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", FEW)
def test_every_head_of_a_tiny_model_matters(arch):
    net, pairs = network(arch), make_pairs(3)
    edits = [HeadEdit(), *(zero_ablate([head]) for head in net.heads())]
    said = read(net, pairs, edits, everywhere=True).logit_diff
    assert ((said[1:] - said[0]).abs().amax(1) > 1e-3).all()


def test_correct_is_top1_of_the_whole_vocabulary():
    """Also where most rows are settled by a few tokens: every third answer is the model's own."""
    net, pairs = network("gemma3"), make_pairs(2, n=30)
    winners = read(net, pairs, full_vocabulary=True).top1[0]
    answer = pairs.answer.clone()
    answer[::3] = torch.where(winners[::3] == pairs.foil[::3], answer[::3], winners[::3])
    told = dataclasses.replace(pairs, answer=answer)
    assert torch.equal(read(net, told, correct=True).correct[0], winners == answer)
    assert (winners == answer).sum() > 5


@pytest.mark.parametrize("arch", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_attribution_is_transformerlens_own(arch):
    """TransformerLens folds the final norm into the unembedding and reads off the same numbers."""
    net, pairs = network(arch), make_pairs(8, n=3)
    ours = read(net, pairs, capture=True).attribution[0]  # prompt layer head token
    theirs_model = tiny_model(arch, seed=1)
    # a value bias is part of what a head writes; their default moves it to the layer
    theirs_model.enable_compatibility_mode(fold_value_biases=False)
    for i in range(len(pairs)):
        tokens = pairs.clean[i : i + 1, : pairs.length[i]]
        theirs = direct_logit_attribution(
            theirs_model,
            tokens,
            answer_tokens=pairs.answer[i : i + 1],
            incorrect_tokens=pairs.foil[i : i + 1],
            unit="head",
        )
        heads = theirs.attribution[: net.n_layers * net.n_heads].reshape(net.n_layers, -1)
        diff = ours[i, :, :, 0] - ours[i, :, :, 1]
        torch.testing.assert_close(diff, heads.to(diff), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arch", FEW)
def test_frozen_norm_terms_add_up(arch):
    """Terms of a residual stream, sent through the frozen norm one by one, sum to its output."""
    net = network(arch)
    x = torch.randn(3, 4, net.W_U.shape[1], generator=torch.Generator().manual_seed(0))
    norm = frozen_norm(net.ln_final, x)
    whole = net.ln_final(x) - (getattr(net.ln_final, "bias", None) if arch in "gpt2neox" else 0)
    torch.testing.assert_close(norm(0.3 * x) + norm(0.7 * x), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", FEW)
def test_attention_is_the_models_own(arch):
    net, pairs = network(arch), make_pairs(6)
    cache = reference.activations(net.model, pairs.clean, "hook_pattern")
    prompt = torch.arange(len(pairs))
    for position in ("END", "S2"):
        ours = attention_from(net, pairs, position)
        for layer in range(net.n_layers):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
            theirs = pattern[prompt, :, pairs.positions[position]]
            torch.testing.assert_close(ours[:, layer], theirs, atol=1e-5, rtol=0)


def test_interventions_leave_no_trace():
    net, pairs = network("gemma3"), make_pairs(9)
    weights = net.model.original_model.state_dict()
    before, logits = {k: v.clone() for k, v in weights.items()}, net.model(pairs.clean)
    path_patch(net, pairs, [(2, 0)], "k", "S2")
    read(net, pairs, [zero_ablate([(0, 0)])])
    assert all(torch.equal(weights[key], before[key]) for key in before)
    assert torch.equal(net.model(pairs.clean), logits)
    assert not any(hook.fwd_hooks for hook in net.model.hook_dict.values())


def test_an_edit_that_does_not_fire_raises(monkeypatch):
    net, pairs = network("llama"), make_pairs(1)
    read(net, pairs)  # the unedited run is kept: only the edited one is made below
    monkeypatch.setattr(head_edits, "run_forward", lambda net, past, resid, *rest, **kw: resid)
    with pytest.raises(RuntimeError, match="did not fire"):
        read(net, pairs, [zero_ablate([(2, 0)])])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"receivers": []}, "at least one receiver"),
        ({"receivers": [(9, 0)]}, "no head L9H0"),
        ({"receivers": [(1, 0)], "senders": [(2, 0)]}, "below layer 1"),
        ({"receivers": [(2, 0)], "position": "S3"}, "no position 'S3'"),
        ({"receivers": "logits", "position": "S2"}, "read at END"),
        ({"receivers": ("resid_post", 9)}, "no layer 9: this model has"),
    ],
)
def test_bad_requests_are_refused_in_one_line(arguments, words):
    with pytest.raises(UsageError, match=words) as error:
        path_patch(network("gpt2"), make_pairs(1), **arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="sum to 1"):
        attention_row([(0, 0)], torch.full((2, 5), 0.3))


def test_an_unknown_block_layout_is_refused():
    """A model whose blocks do something else must not be edited as if they did not."""
    net, pairs = Network(tiny_model("llama", seed=1)), make_pairs(1)
    net.blocks[1].scale *= 1.5
    with pytest.raises(UsageError, match="not of a known layout"):
        read(net, pairs)


@pytest.mark.parametrize("arch", [pytest.param("gpt2", marks=pytest.mark.slow), "gemma3"])
def test_bfloat16_is_near_float32_and_reads_out_in_float32(arch):
    """Rounding only: errors far below the size of the effects; nothing read out is bfloat16."""
    exact, pairs = network(arch), make_pairs(7)
    model = tiny_model(arch, seed=1)
    model.original_model.to(torch.bfloat16)
    model.cfg.dtype = torch.bfloat16
    half = Network(model)
    for receivers, position in (("logits", "END"), ([(2, 1)], "S2")):
        a, b = (path_patch(net, pairs, receivers, "q", position) for net in (exact, half))
        error = (a.logit_diff - b.logit_diff).nan_to_num().abs().max()
        assert 0 < error < 0.05 * a.clean.abs().max()
        assert b.logit_diff.dtype == torch.float32
    seen = read(half, pairs, capture=True, correct=True, full_vocabulary=True)
    for name in ("logits", "logsumexp", "pattern", "attribution"):
        assert getattr(seen, name).dtype == torch.float32
    assert torch.equal(seen.correct, seen.top1 == pairs.answer)
