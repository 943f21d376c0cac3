"""The knob's tools against whole forward passes, and the layer search by hand-worked examples."""

import numpy as np
import pytest
import torch

from replib.chapters.context_knob import steering
from replib.chapters.context_knob.intents import INTENTS, draw_cases, known_facts, prompt
from replib.chapters.context_knob.planted import WIDTHS
from replib.chapters.factual_recall.facts import first_token
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
    ids = torch.tensor([model.tokenizer(text).input_ids])
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model.original_model(ids).logits[0, -1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prompts_read_once_give_the_logits_of_whole_passes(arch):
    model = tiny_model(arch)
    long = [f"{'the red ball and ' * 5}{text}" for text in PROMPTS]
    for texts, common in ((PROMPTS, False), (long, True), (PROMPTS[:1], False)):
        read = Prefilled(model, texts)
        if arch != "gemma3":  # its window of 8 counts the padding
            expected = torch.stack([whole(model, text) for text in texts])
            torch.testing.assert_close(read.step(), expected, atol=1e-4, rtol=1e-4)
            rows = torch.tensor([len(texts) - 1, 0, 0])
            torch.testing.assert_close(read.step(rows), expected[rows], atol=1e-4, rtol=1e-4)
            assert read.continuations(5) == [continuations(model, [t], 5)[0] for t in texts]
        assert (read.common >= 16) == common


def test_steering_sets_the_coordinate_at_the_last_token_only():
    model = tiny_model("llama")
    u = torch.randn(32, generator=torch.Generator().manual_seed(1))
    unit = u / u.norm()

    def write(h, hook):
        h = h.clone()
        h[:, -1] += (0.7 - h[:, -1] @ unit)[:, None] * unit
        return h

    read = Prefilled(model, PROMPTS)
    with torch.no_grad(), steering.steered(model, 2, u, 0.7):
        logits = read.step()
    expected = [whole(model, t, [("blocks.2.hook_resid_post", write)]) for t in PROMPTS]
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-4, rtol=1e-4)
    each = torch.tensor([0.7, 5.0, -5.0])
    with torch.no_grad(), steering.steered(model, 2, u, each):
        several = read.step()
    torch.testing.assert_close(several[0], logits[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(several[1], logits[1], atol=0.1)
    with torch.no_grad():
        assert torch.equal(Prefilled(model, PROMPTS).step(), read.step())  # no trace is left


def test_steering_everywhere_reaches_every_position():
    model = tiny_model("gpt2")
    u, seen = torch.ones(32), []
    ids = torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])
    watch = ("blocks.1.hook_resid_post", lambda h, hook: seen.append(h @ (u / u.norm())))
    for everywhere in (True, False):
        with steering.steered(model, 1, u, 3.0, everywhere=everywhere), model.hooks([watch]):
            model.original_model(ids)
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 3.0))
    assert (seen[1][0, :-1] - 3.0).abs().min() > 0.01 and abs(float(seen[1][0, -1]) - 3.0) < 1e-4


def test_steering_a_layer_that_is_not_there_or_nothing_at_all():
    model = tiny_model("gpt2")
    there_is_none = pytest.raises(UsageError, match="no layer 4: this model has layers 0 to 3")
    with there_is_none, steering.steered(model, 4, torch.ones(32), 0.0):
        pass
    silent = pytest.raises(RuntimeError, match="saw no forward pass")
    with silent, steering.steered(model, 1, torch.ones(32), 0.0):
        pass


def test_exchanging_every_direction_gives_the_source_and_one_gives_less():
    model = tiny_model("llama")
    read = Prefilled(model, PROMPTS)
    base, source = torch.tensor([0, 2]), torch.tensor([1, 0])
    given = steering.residuals(read, source)[1]
    u = torch.randn(32, generator=torch.Generator().manual_seed(0))
    once = steering.interchange(read, 1, u, base, given)
    mine = steering.residuals(read, base)[1]
    unit = u / u.norm()

    def write(h, hook):
        h = h.clone()
        h[:, -1] = mine + ((given - mine) @ unit)[:, None] * unit
        return h

    with torch.no_grad(), model.hooks([("blocks.1.hook_resid_post", write)]):
        expected = read.step(base)
    torch.testing.assert_close(once, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(once, read.step(base), atol=1e-3)


def test_patching_all_attention_outputs_gives_the_source_where_last_tokens_agree():
    model = tiny_model("llama")
    read = Prefilled(model, PROMPTS[:2])  # both end in " to"
    target, source = torch.tensor([0]), torch.tensor([1])
    outputs = steering.attention_outputs(read, source)
    sets = torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]])
    found = steering.patched_residuals(read, target, outputs, sets)
    assert found.shape == (4, 3, 1, 32)
    torch.testing.assert_close(found[:, 0], steering.residuals(read, source), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 1], steering.residuals(read, target), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[0, 2], found[0, 1])  # nothing changes before layer 1
    assert not torch.allclose(found[1, 2], found[1, 1], atol=1e-3)


def test_the_patchscope_is_a_whole_pass_with_one_residual_put_in():
    model = tiny_model("gpt2")
    read = Prefilled(model, PROMPTS[:2])
    held = steering.residuals(read)
    tokens = torch.tensor([[5, 9], [7, 11]])
    found = steering.patchscope(model, held, tokens, torch.tensor([0, 2]))

    def put(value):
        def hook(h, hook):
            h = h.clone()
            h[:, -1] = value
            return h

        return hook

    for layer, row in ((0, 0), (2, 1), (3, 0)):
        hooks = [(f"blocks.{layer}.hook_resid_post", put(held[layer, row]))]
        p = whole(model, steering.IDENTITY_PROMPT, hooks).softmax(-1)[tokens[row]]
        torch.testing.assert_close(found[layer, row], p, atol=1e-5, rtol=1e-4)
    assert float(found[:2, 1].abs().max()) == 0.0  # not read before `first`


# --- The search -----------------------------------------------------------------------------------


def scores(enough, drops=()):
    """A model of 12 layers in which a set carries the answer if `enough(set)` says so; after each
    layer of `drops` that is not patched, the answer is lost again."""

    def score(sets):
        out = np.zeros((len(sets), 12, 2))
        for i, some in enumerate(sets):
            if enough(set(some)):
                out[i, max(some) :, 0] = 1.0
                for layer in drops:
                    if layer not in some:
                        out[i, layer:, 0] = 0.0
                        break
            out[i, :, 1] = 1.0 - out[i, :, 0]
        return out

    return score


def test_the_search_finds_the_smallest_run_of_layers():
    found = steering.search_layers(scores(lambda some: {4, 5, 6} <= some), 12, 0.85)
    assert (found.layers, found.lower, found.upper) == ((4, 5, 6), 4, 7)
    assert found.evaluations < 12  # linear sweeps would take more
    one = steering.search_layers(scores(lambda some: 11 in some), 12, 0.85)
    assert one.layers == (11,)
    first = steering.search_layers(scores(lambda some: 0 in some), 12, 0.85)
    assert first.layers == (0,)


def test_the_search_adds_later_layers_that_lose_the_answer():
    found = steering.search_layers(scores(lambda some: {3} <= some, drops=(7, 9)), 12, 0.85)
    assert found.layers == (3, 7, 9) and found.upper == 4


def test_the_search_finds_nothing_where_all_layers_are_not_enough():
    assert steering.search_layers(scores(lambda some: False), 12, 0.85) is None


# --- The planted gate and a random model ----------------------------------------------------------

GATE = make_slots(WIDTHS)["gate"][:, 0]  # the unit vector that the intent head writes along


@pytest.fixture(scope="module")
def planted():
    return load_model("planted-gate")


@pytest.fixture(scope="module")
def cases(planted):
    tokenizer = planted.tokenizer
    known = known_facts(tokenizer, lambda p, a: continuations(planted, p, 3), "train", 60)
    return draw_cases(tokenizer, known, 1, 0)[:48]


def exchange(model, cases):
    tokenizer = model.tokenizer
    read = Prefilled(model, [prompt(tokenizer, c, i) for i in INTENTS for c in cases])
    base = torch.arange(len(read))
    source = base.roll(len(cases))
    token = torch.tensor([first_token(tokenizer, c.answer(i)) for i in INTENTS for c in cases])
    return read, base, source, token[source]


def share(parts, layer, direction):
    read, base, source, token = parts
    given = steering.residuals(read, source)[layer]
    logits = steering.interchange(read, layer, direction, base, given)
    return float((logits.argmax(-1) == token).double().mean())


def learned(parts, layer):
    return steering.learn_direction(parts[0], layer, *parts[1:], epochs=10, seed=0)


def test_the_planted_direction_is_learned_and_the_wrong_layers_give_nothing(planted, cases):
    parts = exchange(planted, cases)
    u = learned(parts, 1)
    assert abs(float(u @ GATE)) >= 0.95
    assert share(parts, 1, u) > 0.95 and share(parts, 1, GATE) > 0.95
    assert max(share(parts, layer, learned(parts, layer)) for layer in (0, 4)) < 0.2
    random = torch.randn(50, len(u), generator=torch.Generator().manual_seed(0))
    assert max(share(parts, 1, v) for v in random) < 0.1


def test_on_the_same_prompts_random_weights_have_no_such_direction(cases):
    model = load_model("planted-gate")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    parts = exchange(model, cases)
    for layer in range(5):
        u = learned(parts, layer)
        assert share(parts, layer, u) < 0.2 and abs(float(u @ GATE)) < 0.5
