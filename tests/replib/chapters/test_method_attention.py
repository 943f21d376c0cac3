"""Where heads look, and what their circuits do: by hand, and on models of known parts."""

import numpy as np
import pytest
import torch

from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.chapters.method import attention
from replib.interventions.network import Network
from replib.metrics import rng
from replib.models.load import load_model
from replib.models.tiny import tiny_model
from replib.prompts.vocabulary import word_tokenizer

(INDUCTION,) = PLANTED_ROLES["induction_heads"]
(PREVIOUS,) = PLANTED_ROLES["previous_token_heads"]
MOVER = PLANTED_ROLES["name_movers"][0]


@pytest.fixture(scope="module")
def names():
    return attention.repeated_names(word_tokenizer(), 6, seed=3)


@pytest.fixture(scope="module")
def planted(names):
    net = Network(load_model("planted-ioi"))
    return net, attention.run(net, names.tokens)


def test_looks_go_from_a_repeated_name_to_what_followed_it(names):
    looks = names.after_same(torch.arange(6))
    tokens = names.tokens
    said, heard = tokens[looks.seq, looks.dest], tokens[looks.seq, looks.src - 1]
    assert said.equal(heard) and (looks.dest - looks.src == names.length[looks.seq] - 1).all()
    assert ((looks.first <= looks.src) & (looks.src <= looks.last)).all()
    assert looks.first.min() == 2 and (looks.last == names.length[looks.seq] - 1).all()
    assert len(looks.seq) == int((names.length - 2).sum())
    assert names.length.unique().numel() > 2
    before = names.just_before(torch.tensor([4]))
    assert before.dest.tolist() == list(range(1, 28)) and (before.dest - before.src == 1).all()


def hand_made():
    """Two sequences, one layer of two heads, three positions; looks from 2 to 1."""
    pattern = torch.zeros(2, 1, 2, 3, 3)
    pattern[0, 0, 0, 2] = torch.tensor([0.1, 0.6, 0.3])
    pattern[1, 0, 0, 2] = torch.tensor([0.5, 0.2, 0.3])
    pattern[:, 0, 1, 2] = torch.tensor([0.0, 0.1, 0.9])
    one = torch.tensor([0, 1])
    return pattern, attention.Looks(one, one * 0 + 2, one * 0 + 1, one * 0, one * 0 + 1)


def test_attention_by_hand():
    pattern, looks = hand_made()
    assert attention.attention_to(pattern, looks)[:, 0].tolist() == [
        pytest.approx([0.6, 0.1]),
        pytest.approx([0.2, 0.1]),
    ]


def test_the_best_by_chance_is_the_best_of_all_heads():
    """Head 0 has (0.1 or 0.6) and (0.5 or 0.2), half of each; head 1 at most 0.1."""
    pattern, looks = hand_made()
    null = attention.best_by_chance(pattern, looks, np.random.default_rng(0), 200)
    possible = {round(a + b, 2) for a in (0.05, 0.3) for b in (0.25, 0.1)}
    assert {round(float(x), 2) for x in null.draws} == possible


def test_a_draw_may_take_the_first_and_the_last_place(names):
    """A head with all attention on place 2, the first that may be drawn, is drawn sometimes."""
    looks = names.after_same(torch.arange(6))
    for place in ("first", "last"):
        pattern = torch.zeros(6, 1, 1, 28, 28)
        pattern[looks.seq, :, :, looks.dest, getattr(looks, place)] = 1
        null = attention.best_by_chance(pattern, looks, np.random.default_rng(0), 100)
        share = (1 / (names.length - 2).double()).mean()
        assert abs(null.draws.mean() - share) < 0.03


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3"])
def test_parts_of_the_keys_add_up_to_the_scores(arch, names):
    """The slow way: logs of a pattern's entries are scores, but for a number of their row."""
    net = Network(tiny_model(arch, seed=5))
    seen, looks = attention.run(net, names.tokens), names.after_same(torch.arange(6))
    for head in ((1, 2), (3, 1)):  # of layers without a window
        raised = attention.key_reader(net, seen, head, looks, names.tokens)
        log = seen.pattern[:, *head].log()
        want = torch.zeros(6)
        for seq, dest, src, first, last in torch.stack(list(vars(looks).values()), 1).tolist():
            row = log[seq, dest]
            want[seq] += row[src] - row[first : last + 1].mean()
        want /= looks.seq.bincount()
        got = raised(seen.stream[head[0]])
        assert torch.allclose(got, want, atol=1e-4), (head, got, want)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_heads_add_up_to_what_attention_wrote(arch, names):
    model = tiny_model(arch, seed=5)
    net = Network(model)
    seen, looks = attention.run(net, names.tokens), names.after_same(torch.arange(6))
    with torch.inference_mode():
        _, cache = model.run_with_cache(names.tokens)
    raised = attention.key_reader(net, seen, (3, 1), looks, names.tokens)
    each = attention.match_by_head(net, seen, (3, 1), looks, names.tokens)
    assert each.shape == (6, 3, 4)
    for layer in range(3):
        assert torch.allclose(each[:, layer].sum(1), raised(cache["attn_out", layer]), atol=1e-4)


def test_the_planted_induction_head_reads_the_planted_previous_token_head(planted, names):
    net, seen = planted
    every = torch.arange(6)
    score = attention.attention_to(seen.pattern, names.after_same(every)).mean(0)
    assert divmod(int(score.argmax()), net.n_heads) == INDUCTION and score[INDUCTION] > 0.9
    brings = attention.match_by_head(net, seen, INDUCTION, names.after_same(every), names.tokens)
    assert brings.mean(0).argmax() == PREVIOUS[1] and brings.shape == (6, 1, net.n_heads)
    assert brings[..., PREVIOUS[1]].min() > 100 * brings[..., 0].abs().max()


def test_circuits_of_planted_heads(planted, names):
    """It matches names at any distance, and marks what a mover would say."""
    net, seen = planted
    circuit = attention.qk_circuit(net, INDUCTION, PREVIOUS, seen, names, [1, 9])
    assert attention.own_first(circuit[0]).all() and circuit[0].equal(circuit[1])
    assert attention.own_first(attention.ov_circuit(net, MOVER, seen, names)).all()
    marks = attention.own_first(attention.ov_circuit(net, INDUCTION, seen, names))
    assert marks.double().mean() < 0.1


def test_rotary_models_have_a_qk_circuit_for_each_distance(names):
    net = Network(tiny_model("llama"))
    seen = attention.run(net, names.tokens)
    near, far = attention.qk_circuit(net, (2, 3), (1, 0), seen, names, [1, 9])
    assert not torch.allclose(near, far, atol=1e-3)


def test_own_first():
    circuit = torch.tensor([[2.0, 1.0], [3.0, 1.0]])
    assert attention.own_first(circuit).tolist() == [True, False]


def test_above_null_is_about_the_lower_end():
    pattern, looks = hand_made()
    got = attention.look_and_chance(pattern, looks, (0, 0), rng(0), 50)
    assert got["value"].value == pytest.approx(0.4)
    assert attention.above_null(**got) == got["value"].low - got["null"].asdict()["q95"]


def test_frames_say_in_words_what_they_show():
    moved = attention.moved_name(word_tokenizer(), seed=0, n_others=3)
    a, b, c = (moved.words[0][i] for i in (0, 2, 3))
    name = moved.words[0][-1]
    assert moved.words == ((a, name, b, c, a, b, c, name), (a, b, name, c, a, b, c, name))
    assert moved.place.tolist() == [1, 2] and moved.end == 4
    sees = torch.tensor([[0.1, 0, 0.7, 0, 0, 0.1, 0.1, 0], [0.9, 0, 0, 0.05, 0, 0, 0.05, 0]])
    (bars,), steps = attention.frames(sees, moved)[0].values(), attention.frames(sees, moved)[1]
    assert list(bars) == [
        (f"1 {a}", f"1 {a}"),
        (f"2 {name} (moves)", f"2 {b}"),
        (f"3 {b} (comes after it)", f"3 {name} (moves)"),
        (f"4 {c}", f"4 {c} (comes after it)"),
        "all that is said again",
    ]
    assert bars["all that is said again"] == pytest.approx([0.2, 0.05])
    assert steps[0].startswith(f"place 2, before {b};") and steps[0].endswith("place 3, 70%")


def test_the_drawn_pattern_is_described():
    grid = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    alt = attention.draw_pattern(grid, ["Ann", "Bob"], {1: 0}).alt
    assert alt.endswith("Ann at 0: Ann at 0, 1.00; Bob at 1: Bob at 1, 0.75.")
