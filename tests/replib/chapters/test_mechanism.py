"""Strings to copy and look up in: formats and scores by hand. The planted copier is right wherever
a lookup of n letters must be; the analysis finds its mechanism, and nothing in random networks."""

import pytest
import torch

from replib.chapters.copying_mamba import mechanism as m
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.planted import COPY_LAYER, planted_copier
from replib.chapters.copying_mamba.strings import ALPHABET, EOS, Strings
from replib.errors import UsageError

COPY_HEAD = 5  # n_gram + 1
CHANCE = 1 / 26


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def texts(strings):
    return [copying.to_text(row) for row in strings.tokens]


@pytest.mark.parametrize("task", copying.TASKS)
def test_answers_are_read_at_their_source(task):
    strings = copying.TASKS[task](50, 9, seeded())
    at = torch.arange(50)[:, None]
    assert torch.equal(strings.tokens[at, strings.source], strings.answers[:, :-1])
    assert (strings.answers[:, -1] == EOS).all()
    again = copying.TASKS[task](50, 9, seeded())
    assert torch.equal(strings.tokens, again.tokens)
    assert not torch.equal(strings.tokens, copying.TASKS[task](50, 9, seeded(1)).tokens)


def test_formats():
    for text in texts(copying.copy(20, 5, seeded())):
        x = text[1:6]
        assert text == f"${x}|{x}." and x.isalpha()
    for text in texts(copying.prefix_ngram(20, 8, seeded())):
        g, x, a = text[1:4], text[5:13], text[14:17]
        assert text == f"${g}|{x}|{a}." and x.count(g) == 1 and g + a in x
    for text in texts(copying.suffix_ngram(20, 8, seeded())):
        x, g, a = text[1:9], text[10:13], text[13:16]
        assert text == f"${x}|{g}{a}." and x.count(g) == 1 and g + a in x
    for text in texts(copying.phone_book(20, 30, seeded())):
        book, asked = text[1:].split("|")
        entries = [book[i : i + 6] for i in range(0, len(book), 6)]
        assert len(entries) == len({entry[:2] for entry in entries}) == 30  # no name twice
        assert asked[:-1] in entries
        assert set("".join(entry[2:] for entry in entries)) <= set("abcdefghij")


def test_what_is_asked_for_occurs_once_and_can_be_anywhere():
    strings = copying.suffix_ngram(2000, 100, seeded())  # by chance 10 of these would not
    assert all(text[1:101].count(text[102:105]) == 1 for text in texts(strings))
    source = copying.suffix_ngram(2000, 7, seeded()).source
    assert set(source[:, 0].tolist()) == {4, 5}  # letters 3 and 4, behind `$`


def test_a_duplicated_run_occurs_twice_with_different_letters_behind():
    for run in (1, 2, 4, 6):
        strings, after = copying.duplicate_ngram(200, 20, seeded(), run)
        for text, places in zip(texts(strings), after.tolist(), strict=True):
            x = text[1:21]
            first, second = (x[place - run : place] for place in places)
            assert first == second and x[places[0]] != x[places[1]]
            assert places[0] + run <= places[1]
    assert (after[:, 1] == 19).any()  # the second run may end the string but for one letter


def test_what_does_not_fit_is_refused():
    for make, words in (
        (lambda: copying.suffix_ngram(1, 5, seeded()), "length of 6 or more"),
        (lambda: copying.duplicate_ngram(1, 9, seeded(), 4), "length of 10 or more"),
        (lambda: copying.phone_book(1, 677, seeded()), "676"),
        (lambda: copying.copy(1, 0, seeded()), "1 or more"),
    ):
        with pytest.raises(UsageError, match=words):
            make()


class Scripted(torch.nn.Module):
    """Says the next letter of the alphabet after the last token, and `.` after z."""

    def forward(self, tokens):
        said = torch.where(tokens == 25, EOS, (tokens + 1) % 26)
        return torch.nn.functional.one_hot(said, len(ALPHABET)).float()


def test_teacher_forced_and_free_running_part_after_an_error():
    tokens = torch.tensor([[ALPHABET.index(c) for c in text] for text in ("$wxyz.", "$wxbc.")])
    strings = Strings(tokens, 4, torch.zeros(2, 3, dtype=torch.long))
    forced = copying.teacher_forced(Scripted(), strings)
    assert forced.tolist() == [[True] * 4, [True, False, True, False]]
    free = copying.free_running(Scripted(), strings)
    assert free.tolist() == [[True] * 4, [True, False, False, True]]  # w x y z .


# --- The planted copier, and random networks ------------------------------------------------------


@pytest.fixture(scope="module")
def strings():
    return copying.copy(24, 8, seeded())


@pytest.fixture(scope="module")
def planted():
    return m.wrapped(planted_copier())


@pytest.mark.parametrize("length", [1, 2, 5, 30, 100, pytest.param(300, marks=pytest.mark.slow)])
def test_it_copies_strings_of_any_length_but_for_runs_that_occur_twice(length):
    n = 64 if length < 100 else 8
    strings = copying.copy(n, length, seeded(length))
    right = copying.teacher_forced(planted_copier(), strings).all(1)
    runs = strings.tokens[:, 1 : length + 1].unfold(1, min(4, length), 1)
    twice = torch.tensor([len({tuple(r) for r in row.tolist()}) < len(row) for row in runs])
    assert right[~twice].all()
    assert twice.float().mean() <= length**2 / 26**4 + 0.05  # the bound of Lemma 2.4
    if length == 30:
        assert copying.free_running(planted_copier(), strings).all(1)[~twice].all()


@pytest.mark.parametrize("n_gram", [2, 4])
def test_it_breaks_where_the_run_that_occurs_twice_is_as_long_as_the_lookup(n_gram):
    network = planted_copier(n_gram)
    for run in {1, n_gram - 1, n_gram, 6}:
        strings, after = copying.duplicate_ngram(200, 20, seeded(run), run)
        right = copying.teacher_forced(network, strings).gather(1, after).double().mean(0)
        if run < n_gram:
            assert right.min() > 0.94  # the letter before agrees in 1 of 26
        else:
            # Two answers tie; then the copy itself holds the first of them once more.
            assert 0.4 < right[0] < 0.6 and right[1] < 0.06


def test_the_planted_heads_are_found(planted, strings):
    lookup = m.lookup_scores(planted, strings).mean(-1)
    assert lookup[COPY_LAYER, COPY_HEAD] > 0.9
    others = lookup.clone()
    others[COPY_LAYER, COPY_HEAD] = 0
    assert others.max() < 0.3
    previous = m.previous_token_scores(planted, strings).mean(-1)
    # Head i of layer 0 sees the last i + 1 tokens alike; at the start there are fewer.
    assert previous[0, 0] == 0 and previous[0, 1].item() == pytest.approx(0.5, abs=1e-4)
    assert previous[0, 1:5].diff().max() < 0


def average(out):
    out[:] = out.mean((0, 1))


def without(model, strings, *part):
    return m.accuracy_with(model, strings, part, average).mean().item()


def test_an_edit_reaches_one_head_alone_and_leaves_no_trace(planted, strings):
    shapes = []
    copied = copying.teacher_forced(planted, strings)
    right = m.accuracy_with(planted, strings, (COPY_LAYER, 3), lambda z: shapes.append(z.shape))
    assert torch.equal(right, copied.double().mean(1))  # nothing was changed
    without(planted, strings, COPY_LAYER, COPY_HEAD)
    assert torch.equal(copying.teacher_forced(planted, strings), copied)
    m.accuracy_with(planted, strings, (0, None), lambda out: shapes.append(out.shape))
    n, length = strings.tokens.shape
    assert shapes[0][:2] == shapes[1][:2] == (n, length)
    assert shapes[1][2] == planted.cfg.d_model > shapes[0][2]  # a layer's output, a head's z


def test_parts_are_heads_or_layers_and_the_best_head_is_the_largest_on_average(planted):
    assert m.parts(planted)["L1H5"] == (COPY_LAYER, COPY_HEAD)
    assert len(m.parts(planted)) == 2 * planted.cfg.n_heads
    layers = {"layer 0": (0, None), "layer 1": (1, None), "layer 2": (2, None)}
    assert m.parts(m.wrapped(build("mamba2", 0))) == layers
    scores = torch.tensor([[[0.1, 0.2], [0.9, 0.0]], [[0.4, 0.6], [0.0, 0.3]]])
    assert m.best_head(scores) == ((1, 0), pytest.approx(0.5))


def test_ablation_finds_the_heads_that_copying_needs(planted, strings):
    accuracy = {head: without(planted, strings, *head) for head in m.parts(planted).values()}
    assert accuracy[COPY_LAYER, COPY_HEAD] < 0.2
    assert all(accuracy[0, h] < 0.9 for h in (0, 1))  # the last token, the one before
    idle = [h for h in accuracy if h != (COPY_LAYER, COPY_HEAD) and h[1] >= 5]
    assert all(accuracy[head] > 0.99 for head in idle)
    assert without(planted, strings, COPY_LAYER, None) < 0.2


class Counter(torch.nn.Module):
    """Copies by position: says the letter as far behind `|` as it stands behind `$`."""

    def forward(self, tokens):
        bar = (tokens == copying.SEPARATOR).int().argmax(1)
        at = tokens.shape[1] - bar
        said = tokens.gather(1, at[:, None])[:, 0]
        logits = torch.zeros(*tokens.shape, 30)
        logits[torch.arange(len(tokens)), -1, said] = 1
        return logits


def test_a_spliced_copy_by_its_format():
    cut = m.spliced(200, 16, 4, seeded())
    places = set()
    rows = zip(texts(cut), copying.to_text(cut.content), copying.to_text(cut.position), strict=True)
    for text, content, position in rows:
        x, written = text[1:].split("|")
        assert len(set(x)) == 16 and len(written) == 8 and text[0] == "$"
        assert written[:4] == x[:4] and position == x[8] != content
        assert written[4:] + content in x and written[4:] != x[4:8]
        places.add(x.index(written[4:]))
    assert {0, 3, 9, 11} <= places  # before and behind the place where the copy is


def test_the_planted_copier_follows_content_and_one_that_counts_position():
    cut = m.spliced(100, 16, 4, seeded())
    said = copying.next_token(planted_copier(), cut.tokens)
    assert (said == cut.content).float().mean() > 0.95
    assert torch.equal(copying.next_token(Counter(), cut.tokens), cut.position)


def test_the_letter_moves_from_its_source_to_the_query_in_the_copy_layer(planted, strings):
    recovered = m.moved(planted, strings, letter=5).nanmean(-1)
    assert recovered[0].tolist() == pytest.approx([1, 0], abs=0.1)  # layer, place
    assert recovered[1].tolist() == pytest.approx([0, 1], abs=0.1)


@pytest.mark.parametrize("name", ["rope", "mamba2"])
def test_in_random_networks_nothing_is_found(name, strings):
    model = m.wrapped(build(name, seed=0, start="s02" if name == "rope" else "s10"))
    assert m.has_heads(model) == (name == "rope")
    assert m.moved(model, strings, letter=5).isnan().all()
    cut = m.spliced(100, 16, 4, seeded())
    said = copying.next_token(model.original_model, cut.tokens)
    assert (said == cut.content).double().mean() < 0.2
    if name == "rope":
        assert m.lookup_scores(model, strings).mean(-1).max() < 0.2
        assert all(without(model, strings, *head) < 0.2 for head in m.parts(model).values())


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_wiped_writes_change_what_a_state_says(name, strings):
    """Also in a random network the state is what carries the source."""
    model, read = m.wrapped(build(name, seed=0)), []
    with torch.no_grad():
        plain = model(strings.tokens)
    keep = model.original_model.register_forward_hook(lambda *called: read.append(called[2].logits))
    right = m.wiped(model, strings, layer=1)
    keep.remove()
    assert right.shape == (24,) and not torch.allclose(read[0], plain, atol=1e-4)
    assert torch.allclose(model(strings.tokens), plain)  # no trace
    after = m.states(model, strings)
    assert after.shape[:2] == (model.cfg.n_layers, 24) and after.std(1).max() > 0


def test_letters_are_read_from_states_that_hold_them_and_not_from_others():
    generator = seeded()
    letters = torch.randint(26, (400,), generator=generator)
    mixing = torch.randn(26, 60, generator=generator)
    states = mixing[letters] + 0.1 * torch.randn(400, 60, generator=generator)

    def share_read(said):
        read = m.read_letters(states[:300], said[:300], states[300:])
        return (read == said[300:]).double().mean()

    assert share_read(letters) > 0.95
    assert share_read(letters[torch.randperm(400, generator=generator)]) < 4 * CHANCE


def test_what_there_is_not_is_refused(planted, strings):
    for refused, words in (
        (lambda: m.wiped(planted, strings, 0), "no state of fixed size"),
        (lambda: m.wrapped(build("lstm", 0)), "LSTM has no hooks"),
        (lambda: m.spliced(1, 11, 4, seeded()), "give 12 to 26"),
        (lambda: planted_copier(0), "n_gram is 0"),
    ):
        with pytest.raises(UsageError, match=words):
            refused()
