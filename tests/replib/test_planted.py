"""The planted model does the task by its circuit, and every head plays the part it was given.

That a chapter's own method finds these heads is tested in chapters/test_controls.py.
"""

import pytest
import torch

from replib.chapters.ioi_circuit_reuse.planted import (
    MOVER_WEIGHTS,
    PLANTED_ROLES,
    planted_ioi,
)
from replib.interventions.head_edits import (
    HeadEdit,
    attention_from,
    attention_row,
    read,
    resample_ablate,
    zero_ablate,
)
from replib.interventions.network import Network
from replib.models.load import load_model
from replib.prompts.capitals import capital_pairs
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer

N = 72  # every template in both orders, twice
WORD = word_tokenizer()
PREVIOUS = PLANTED_ROLES["previous_token_heads"]
EITHER = PLANTED_ROLES["duplicate_token_heads"] + PLANTED_ROLES["induction_heads"]
# They look for what IOI does not have.
OF_OTHER_TASKS = ("answer_seen_heads", "content_gatherers", "recall_heads")
PLANTED = [head for heads in PLANTED_ROLES.values() for head in heads]


@pytest.fixture(scope="module")
def net():
    return Network(load_model("planted-ioi"))


@pytest.fixture(scope="module")
def noise(net):
    return [head for head in net.heads() if head not in PLANTED]


@pytest.fixture(scope="module")
def pairs():
    return ioi_pairs(WORD, N, seed=11)


def kept(net, pairs, edits):
    """Logit difference [edit prompt] under edits at every position; 1 is its mean without any."""
    said = read(net, pairs, [HeadEdit(), *edits], everywhere=True).logit_diff
    return said[1:] / said[0].mean()


def test_it_does_the_task(net):
    pairs = ioi_pairs(WORD, 200, seed=0)
    said = read(net, pairs, correct=True)
    assert said.correct.float().mean() >= 0.99  # of the whole vocabulary
    assert (said.logit_diff > 0).float().mean() >= 0.99
    assert said.logit_diff.mean() > 5
    corrupted = read(net, pairs.swapped()).logit_diff
    assert (corrupted < 0).float().mean() >= 0.99
    assert corrupted.mean() < -5


def test_half_of_colored_objects_goes_wrong_and_the_repair_works(net):
    pairs = colored_objects_pairs(WORD, 300, seed=0)
    row = torch.zeros(pairs.clean.shape).scatter(1, pairs.positions["wrong_colors"], 0.5)
    inhibition, negative = (PLANTED_ROLES[r] for r in ("inhibition_heads", "negative_movers"))
    edits = [attention_row(h, row) for h in (inhibition, negative, inhibition + negative)]
    said = read(net, pairs, [HeadEdit(), *edits], full_vocabulary=True, capture=True)
    right = said.top1 == pairs.answer
    before, blocked, subtracted, both = right.double().mean(1).tolist()
    assert 0.4 < before < 0.6 and both > 0.7
    assert before + 0.08 < min(blocked, subtracted) <= max(blocked, subtracted) < both - 0.08
    assert not (right[0] & ~right[3]).any()  # no new mistakes
    assert (said.top1[0][:, None] == pairs.candidates).any(1).double().mean() > 0.95
    assert said.logit_diff[0].mean() - read(net, pairs.swapped()).logit_diff.mean() > 2
    # Inhibition heads look at all colours alike, the negative mover at none.
    rows, pattern = torch.arange(300), said.pattern[0]

    def on(heads, src):
        return torch.stack([pattern[rows, layer, head, src] for layer, head in heads])

    for column in pairs.positions["colors"].T:
        assert (on(inhibition, column) - 0.12).abs().max() < 0.03
        assert on(negative, column).max() < 0.01
    assert on(PLANTED_ROLES["content_gatherers"], pairs.positions["query"]).min() > 0.99


def test_capitals_are_recalled_by_one_head(net):
    pairs = capital_pairs(WORD, 40, seed=0)
    said = read(net, pairs, [HeadEdit(), zero_ablate(PLANTED_ROLES["recall_heads"])], correct=True)
    assert said.correct[0].all() and not said.correct[1].any()


def test_attention_signatures(net, pairs, noise):
    rows, at = torch.arange(N), pairs.positions
    pattern = {dest: attention_from(net, pairs, dest) for dest in at}

    def attention(heads, dest, src):
        """How much each head attends [head prompt]."""
        return torch.stack([pattern[dest][rows, layer, head, src] for layer, head in heads])

    for dest in at:
        assert attention(PREVIOUS, dest, at[dest] - 1).min() > 0.99
    for role, dest, src in (
        ("duplicate_token_heads", "S2", "S1"),
        ("induction_heads", "S2", "S1+1"),
        ("inhibition_heads", "END", "S2"),
        ("negative_movers", "END", "S2"),
    ):
        assert attention(PLANTED_ROLES[role], dest, at[src]).min() > 0.99
    movers = attention(PLANTED_ROLES["name_movers"], "END", at["IO"])
    assert movers.min() > 0.8 and movers.mean() > 0.98
    # Names that have not been seen before do not set the duplicate-token and induction heads off.
    for dest in ("IO", "S1", "END"):
        assert attention(EITHER, dest, 0).min() > 0.99
    # The noise heads show none of these.
    for dest, src in (("S2", "S1"), ("S2", "S1+1"), ("END", "S2"), ("END", "IO")):
        assert attention(noise, dest, at[src]).mean(1).max() < 0.5


def test_zero_ablating_each_role_does_what_the_circuit_predicts(net, pairs):
    movers = PLANTED_ROLES["name_movers"] + PLANTED_ROLES["negative_movers"]
    sets = {**PLANTED_ROLES, "either": EITHER, "movers": movers}
    found = kept(net, pairs, [zero_ablate(heads) for heads in sets.values()])
    mean = dict(zip(sets, found.mean(1).tolist(), strict=True))
    # Two pathways to "S is the one named twice", 0.6 and 0.4 of the signal.
    assert 0.35 < mean["duplicate_token_heads"] < 0.7 < mean["induction_heads"] < 0.98
    # Without the previous-token or the early head the induction head finds nothing: the same loss.
    for role in ("previous_token_heads", "early_heads"):
        assert mean[role] == pytest.approx(mean["induction_heads"], abs=0.02)
    # With both gone, or without inhibition heads, nothing tells IO from S.
    for role in ("either", "inhibition_heads"):
        assert abs(mean[role]) < 0.03
        assert 0.35 < (found[list(sets).index(role)] > 0).float().mean() < 0.65
    # Without movers only the negative mover is left, which lowers S: 0.55 of 1.55.
    assert mean["name_movers"] == pytest.approx(0.55 / 1.55, abs=0.04)
    assert mean["negative_movers"] == pytest.approx(1 / 1.55, abs=0.04)
    assert abs(mean["movers"]) < 0.03
    for role in OF_OTHER_TASKS:
        assert mean[role] == pytest.approx(1, abs=0.02)


def test_noising_each_planted_head_lowers_the_logit_diff(net, pairs):
    edits = [resample_ablate(heads) for heads in (*([head] for head in PLANTED), EITHER)]
    *single, both = kept(net, pairs, edits).mean(1).tolist()
    unseen = [*PREVIOUS, *(head for role in OF_OTHER_TASKS for head in PLANTED_ROLES[role])]
    left = dict(zip(PLANTED, single, strict=True))
    for head, mean in left.items():
        if head in unseen:  # S2 comes after S1+1: no corruption seen
            assert abs(mean - 1) < 0.02
        else:
            assert mean < 0.92, head
    # A mover of weight w no longer raises IO, and raises S: 2 w of 1.55.
    for head, weight in zip(PLANTED_ROLES["name_movers"], MOVER_WEIGHTS, strict=True):
        assert left[head] == pytest.approx(1 - 2 * weight / 1.55, abs=0.04)
    assert both < -0.1


def test_noise_heads_hardly_matter(net, noise):
    pairs = ioi_pairs(WORD, 24, seed=11)
    edits = [ablate([head]) for ablate in (zero_ablate, resample_ablate) for head in noise]
    change = kept(net, pairs, edits).mean(1) - 1
    assert (change.abs() < 0.02).all()
    assert (change[: len(noise)] != 0).all()  # small, and not idle


def test_every_call_gives_the_same_weights_and_leaves_randomness_alone():
    state = torch.get_rng_state()
    first, again = (planted_ioi()[0].state_dict() for _ in range(2))
    assert torch.get_rng_state().equal(state)
    assert all(again[key].equal(value) for key, value in first.items())
