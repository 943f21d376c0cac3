"""The knob's tools against whole forward passes, and the layer search by hand-worked examples."""

import numpy as np
import pytest
import torch

from replib.chapters.context_knob import last_token, steering
from replib.chapters.context_knob.adapters import adapted
from replib.chapters.context_knob.directions import learn, random_directions, read_opposites
from replib.chapters.context_knob.intents import draw_cases, known_facts
from replib.chapters.context_knob.planted import WIDTHS, planted_adapters
from replib.errors import UsageError
from replib.interventions.generation import Prefilled, continuations
from replib.models.load import load_model
from replib.models.planted import make_slots
from replib.models.tiny import ARCHITECTURES, tiny_model

PROMPTS = [
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink and a red ball to",
    "When Mary and John went to the store, John gave",
]


def whole(model, text, hooks=()):
    """Logits at END of a whole forward pass."""
    ids = torch.tensor([model.tokenizer(text).input_ids])
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model.original_model(ids).logits[0, -1]


def at_end(layer, change):
    """A hook: the output of a layer at the last position becomes `change` of it."""

    def write(h, hook):
        h = h.clone()
        h[:, -1] = change(h[:, -1])
        return h

    return f"blocks.{layer}.hook_resid_post", write


def near(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prompts_read_once_give_the_logits_of_whole_passes(arch):
    model = tiny_model(arch)
    long = [f"{'the red ball and ' * 5}{text}" for text in PROMPTS]
    for texts, common in ((PROMPTS, False), (long, True), (PROMPTS[:1], False)):
        read = Prefilled(model, texts)
        assert (read.common >= 16) == common
        if arch != "gemma3":  # its window of 8 counts the padding
            expected = torch.stack([whole(model, text) for text in texts])
            near(read.step(), expected)
            rows = torch.tensor([len(texts) - 1, 0, 0])
            near(read.step(rows), expected[rows])
            assert read.continuations(5) == [continuations(model, [t], 5)[0] for t in texts]


def test_steering_sets_the_coordinate_at_the_last_token_only():
    model = tiny_model("llama")
    u = torch.randn(32, generator=torch.Generator().manual_seed(1))
    unit = u / u.norm()
    hook = at_end(2, lambda h: h + (0.7 - h @ unit)[:, None] * unit)
    read = Prefilled(model, PROMPTS)
    with torch.no_grad():
        with steering.steered(model, 2, u, 0.7):
            logits = read.step()
        with steering.steered(model, 2, u, torch.tensor([0.7, 5.0, -5.0])):
            several = read.step()
        assert torch.equal(Prefilled(model, PROMPTS).step(), read.step())  # no trace is left
    near(logits, torch.stack([whole(model, text, [hook]) for text in PROMPTS]))
    near(several[0], logits[0])
    assert not torch.allclose(several[1], logits[1], atol=0.1)


def test_steering_everywhere_reaches_every_position_and_nowhere_is_refused():
    model = tiny_model("gpt2")
    u, seen = torch.ones(32), []
    watch = ("blocks.1.hook_resid_post", lambda h, hook: seen.append(h @ (u / u.norm())))
    for everywhere in (True, False):
        with steering.steered(model, 1, u, 3.0, everywhere=everywhere):
            whole(model, PROMPTS[0], [watch])
    near(seen[0], torch.full_like(seen[0], 3.0))
    assert (seen[1][0, :-1] - 3.0).abs().min() > 0.01 and abs(float(seen[1][0, -1]) - 3.0) < 1e-4
    for layer, error, words in (
        (4, UsageError, "no layer 4: this model has layers 0 to 3"),
        (1, RuntimeError, "saw no forward pass"),
    ):
        with pytest.raises(error, match=words), steering.steered(model, layer, u, 0.0):
            pass


def test_an_exchange_along_a_direction_moves_that_coordinate_alone():
    model = tiny_model("llama")
    read = Prefilled(model, PROMPTS)
    base, source = torch.tensor([0, 2]), torch.tensor([1, 0])
    mine, given = (steering.residuals(read, rows)[1] for rows in (base, source))
    u = torch.randn(32, generator=torch.Generator().manual_seed(0))
    once = steering.interchange(read, 1, u, base, given)
    unit = u / u.norm()
    hook = at_end(1, lambda h: mine + ((given - mine) @ unit)[:, None] * unit)
    with torch.no_grad(), model.hooks([hook]):
        near(once, read.step(base))
    assert not torch.allclose(once, read.step(base), atol=1e-3)


def test_patching_all_attention_outputs_gives_the_source_where_last_tokens_agree():
    model = tiny_model("llama")
    read = Prefilled(model, PROMPTS[:2])  # both end in " to"
    target, source = torch.tensor([0]), torch.tensor([1])
    outputs = steering.attention_outputs(read, source)
    sets = torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]])
    found, final = steering.patched(read, target, outputs, sets)
    assert found.shape == (4, 3, 1, 32) and final.shape == (3, 1, 32)
    near(found[:, 0], steering.residuals(read, source))
    near(found[:, 1], steering.residuals(read, target))
    near(found[0, 2], found[0, 1])  # nothing changes before layer 1
    assert not torch.allclose(found[1, 2], found[1, 1], atol=1e-3)
    near(last_token.logits(read, final[0]), read.step(source))


def test_the_patchscope_is_a_whole_pass_with_one_residual_put_in():
    model = tiny_model("gpt2")
    held = steering.residuals(Prefilled(model, PROMPTS[:2]))
    words = torch.tensor([5, 7, 9])
    everything = steering.patchscope(model, held, [0, 2])
    found = steering.patchscope(model, held, [0, 2], words)
    for i, layer in enumerate((0, 2)):
        for row in (0, 1):
            hook = at_end(layer, lambda h, put=held[layer, row]: put)
            logits = whole(model, steering.IDENTITY_PROMPT, [hook])
            torch.testing.assert_close(everything[i, row], logits.softmax(-1), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                found[i, row], logits[words].softmax(-1), atol=1e-5, rtol=1e-4
            )


def scores(needed, drops=()):
    """A model of 12 layers in which sets with the `needed` layers carry the answer; after each
    layer of `drops` that is not patched, the answer is lost again."""

    def score(sets):
        out = np.zeros((len(sets), 12, 2))
        for i, some in enumerate(sets):
            if needed <= set(some):
                lost = min((layer for layer in drops if layer not in some), default=12)
                out[i, max(some) : lost, 0] = 1.0
            out[i, :, 1] = 1.0 - out[i, :, 0]
        return out

    return score


def test_the_search_finds_the_layers_or_nothing_where_all_are_not_enough():
    for needed, drops, layers in (
        ({4, 5, 6}, (), (4, 5, 6)),  # the smallest run
        ({11}, (), (11,)),
        ({0}, (), (0,)),
        ({3}, (7, 9), (3, 7, 9)),  # later layers that lose the answer are added
    ):
        found = steering.search_layers(scores(needed, drops), 12, 0.85)
        assert found.layers == layers
        assert (found.lower, found.upper) == (min(needed), max(needed) + 1)
        assert found.evaluations < 12  # linear sweeps would take more
    assert steering.search_layers(scores({12}), 12, 0.85) is None


ALONG = make_slots(WIDTHS)["gate"][:, 0]  # the unit vector that the intent head writes along


@pytest.fixture(scope="module")
def planted():
    """The model, its first adapter, and cases of what it knows."""
    model = load_model("planted-gate")
    known = known_facts(model.tokenizer, lambda p, a: continuations(model, p, 3), "train", 60)
    cases = draw_cases(model.tokenizer, known, 1, 0)[:24]
    return model, planted_adapters(model.tokenizer)["instruction"][0], cases


def share(rows, layer, v):
    """How often is the source's answer said once the directions are exchanged? [draw]"""

    def exchanged(h_target, h_source, v):
        u = v / v.norm(dim=-1, keepdim=True)
        return h_target + ((h_source - h_target) * u).sum(-1, keepdim=True) * u

    return rows.says_source(rows.exchanged(layer, exchanged, torch.atleast_2d(v))).mean(0)


def test_the_planted_direction_is_learned_and_the_wrong_layers_give_nothing(planted):
    model, adapter, cases = planted
    with adapted(model, adapter):
        rows = read_opposites(model, cases)
        u = learn(rows, 1, rows.token, 0)
        assert float(u @ ALONG) >= 0.8  # a part of where learning began is left
        assert share(rows, 1, u) > 0.95 and share(rows, 1, ALONG) > 0.95
        for layer in (0, 4):
            assert share(rows, layer, learn(rows, layer, rows.token, 0)) < 0.2
        assert share(rows, 1, random_directions(50, len(u), 0)).max() < 0.1


def test_on_the_same_prompts_random_weights_have_no_such_direction(planted):
    model = load_model("planted-gate")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.original_model.parameters():
            noise = 0.1 * torch.randn(p.shape, generator=generator)
            p.copy_(noise if p.dim() > 1 else p + noise)
    rows = read_opposites(model, planted[2])
    for layer in range(5):
        u = learn(rows, layer, rows.token, 0)
        assert share(rows, layer, u) < 0.2 and abs(float(u @ ALONG)) < 0.5
