"""Phone books and texts in the right form, and scores that know right from wrong."""

import re

import pytest
import torch

from replib import metrics
from replib.chapters.copying_pretrained import comparison
from replib.chapters.copying_pretrained import pretrained as text_copying
from replib.chapters.copying_pretrained.comparison import Scores
from replib.chapters.copying_pretrained.pretrained import (
    Item,
    phone_books,
    texts_to_copy,
    tokens_right,
)
from replib.errors import UsageError
from replib.models.load import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


def test_a_phone_book_by_its_format():
    places = set()
    for item in phone_books(6, 60, seed=0):
        book, examples, asked = item.prompt.split("\n\n")
        lines = book.split("\n")
        assert len({line.split(":")[0] for line in lines}) == 6
        assert all(re.fullmatch(r"[A-Z]\w+ [A-Z]\w+: [6-9]\d{9}", line) for line in lines)
        shown = examples.split("\n")
        assert len(set(shown)) == 2 and set(shown) < set(lines)
        assert asked + item.answer not in shown
        assert sorted([item.answer, *item.wrong]) == sorted(f" {x.split(': ')[1]}" for x in lines)
        places.add(lines.index(asked + item.answer))
    assert places == set(range(6))  # every entry can be asked for


def test_the_reversed_order_asks_first_and_about_the_same_books():
    for item, back in zip(phone_books(4, 9, 1), phone_books(4, 9, 1, "reversed"), strict=True):
        question, rest = back.prompt.split("\n\n", 1)
        assert rest == item.prompt and back.answer == item.answer
        assert question == f"What is the number of {item.prompt.split(chr(10))[-1][:-1]}?"
    assert phone_books(4, 9, 1) == phone_books(4, 9, 1) != phone_books(4, 9, 2)


def test_a_text_is_repeated_and_its_rest_asked_for(model):
    plain = texts_to_copy(model.tokenizer, 12, 8, seed=0)
    mixed = texts_to_copy(model.tokenizer, 12, 8, seed=0, shuffled=True)
    for item, other in zip(plain, mixed, strict=True):
        first, again, word = item.prompt.split("\n\n")
        assert first == again == word + item.answer
        ids = model.tokenizer(first).input_ids
        assert 5 <= len(ids) <= 12 and model.tokenizer.unk_token_id not in ids[1:]
        assert sorted(other.prompt.split("\n\n")[0].split()) == sorted(first.split())
    assert [item.prompt for item in plain] != [item.prompt for item in mixed]


def test_scores_are_those_of_greedy_decoding(model):
    """Exact answers, made from what the model itself says, and wrong ones; in a batch or alone."""
    tokenizer, items = model.tokenizer, []
    text = "When Mary and John arrived at the park, John handed the lemon to"
    for n in range(2, 14):
        prompt = " ".join(text.split()[:n])
        ids = tokenizer(prompt).input_ids
        with torch.no_grad():
            for _ in range(4):
                ids.append(int(model.original_model(torch.tensor([ids])).logits[0, -1].argmax()))
        said = tokenizer.decode(ids)
        if tokenizer(said).input_ids == ids:  # its words make the same tokens again
            items += [Item(prompt, said[len(prompt) :]), Item(prompt, " the the the")]
    assert len(items) > 2
    found = tokens_right(model, items)
    for item, right in zip(items, found, strict=True):
        assert torch.equal(right, tokens_right(model, [item])[0])
    assert all(right.all() for right in found[::2])
    assert not any(right.all() for right in found[1::2])


def test_what_cannot_be_read_is_refused(model):
    for refused, words in (
        (lambda: tokens_right(model, [Item("the " * 5000, " to")]), r"tokens, the model reads \d+"),
        (lambda: tokens_right(model, [Item("the park", "")]), "does not begin a token"),
        (lambda: phone_books(2, 1, 0), "give 3 to"),
        (lambda: phone_books(4, 1, 0, "backward"), "'backward': choose one of: forward, reversed"),
        (lambda: texts_to_copy(model.tokenizer, 4, 1, 0), "5 or more"),
    ):
        with pytest.raises(UsageError, match=words):
            refused()


def test_guessing_another_number_by_hand():
    item = Item("", " 1234", (" 1299", " 9999", " 1239"))
    assert text_copying.right_if_another([item], -1) == [0.75]
    assert text_copying.right_if_another([item], None) == [pytest.approx((0.5 + 0 + 0.75) / 3)]


# --- Two models compared -------------------------------------------------------------------------


def scores(*whole):
    table = torch.tensor(whole, dtype=torch.double)
    return Scores(table, table)


def test_scores_of_items_by_length():
    short = [torch.tensor([True, True]), torch.tensor([True, False])]
    long = [torch.tensor([True, False, False, False]), torch.tensor([True] * 4)]
    found = comparison._scores([short, long])
    assert found.whole.tolist() == [[1, 0], [0, 1]]  # length item
    assert found.tokens.tolist() == [[1, 0.5], [0.25, 1]]
    assert found.area.tolist() == [0.5, 0.5]


def test_one_model_alone_leads_nothing_and_two_are_compared_item_by_item():
    a, b = scores([1, 1, 1, 0], [1, 1, 0, 0]), scores([1, 1, 0, 0], [0, 0, 0, 0])
    assert comparison.lead([a.area], metrics.rng(0)) is None
    assert comparison.shuffling_lead([a], [b], metrics.rng(0)) is None
    lead = comparison.lead([a.area, b.area], metrics.rng(0))
    assert (lead.value, lead.n) == (5 / 8 - 2 / 8, 4)


def test_what_shuffling_takes_away_is_a_share_of_what_was_copied():
    plain, mixed = scores([1, 1, 1, 0], [1, 1, 0, 0]), scores([1, 0, 1, 0], [0, 0, 0, 0])
    assert comparison.shuffling_loss(plain, mixed) == pytest.approx(1 - 2 / 5)
    none = scores([0, 0, 0, 0], [0, 0, 0, 0])
    assert comparison.shuffling_loss(none, none) == 1
    lead = comparison.shuffling_lead([plain, plain], [mixed, none], metrics.rng(0))
    assert lead.value == pytest.approx(1 - 3 / 5) and lead.n == 4  # the second loses all


def test_two_models_are_compared_where_one_of_them_can_repeat(model):
    able, unable = scores([1, 0, 0, 0], [0, 0, 0, 0]), scores([0, 0, 0, 0], [1, 1, 1, 1])
    assert comparison.can_repeat([able, unable]) and not comparison.can_repeat([unable, unable])
    assert not comparison.can_repeat([able])
    behind = comparison.behind([model, model], "One. Two three. Four five six.", metrics.rng(0))
    assert behind.value == 0 and behind.n == 3
