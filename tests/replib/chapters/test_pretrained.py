"""Phone books and texts in the right form, and scores that know right from wrong."""

import re

import pytest
import torch

from replib.chapters.copying_mamba import pretrained as text_copying
from replib.chapters.copying_mamba.pretrained import Item, phone_books, texts_to_copy, tokens_right
from replib.errors import UsageError
from replib.interventions.generation import NEUTRAL_TEXT, text_loss
from replib.models.load import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


def test_a_phone_book_by_its_format():
    for item in phone_books(6, 20, seed=0):
        book, examples, asked = item.prompt.split("\n\n")
        lines = book.split("\n")
        assert len({line.split(":")[0] for line in lines}) == 6
        assert all(re.fullmatch(r"[A-Z]\w+ [A-Z]\w+: [6-9]\d{9}", line) for line in lines)
        shown = examples.split("\n")
        assert len(set(shown)) == 2 and set(shown) < set(lines)
        assert asked + item.answer in lines and asked + item.answer not in shown
        assert sorted([item.answer, *item.wrong]) == sorted(f" {x.split(': ')[1]}" for x in lines)


def test_the_reversed_order_asks_first_and_about_the_same_books():
    for item, back in zip(phone_books(4, 9, 1), phone_books(4, 9, 1, "reversed"), strict=True):
        question, rest = back.prompt.split("\n\n", 1)
        assert rest == item.prompt and back.answer == item.answer
        assert question == f"What is the number of {item.prompt.split(chr(10))[-1][:-1]}?"
    assert phone_books(4, 9, 1) == phone_books(4, 9, 1) != phone_books(4, 9, 2)


def test_every_entry_can_be_asked_for():
    places = [
        item.prompt.split("\n").index(item.prompt.split("\n")[-1] + item.answer)
        for item in phone_books(3, 60, seed=0)
    ]
    assert set(places) == {0, 1, 2}


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


class Copier(torch.nn.Module):
    """Says what followed the last occurrence of the latest two tokens; stands for a model."""

    def __init__(self, n_vocabulary):
        super().__init__()
        self.unembed = torch.nn.Linear(n_vocabulary, n_vocabulary, bias=False)
        torch.nn.init.eye_(self.unembed.weight)

    def get_output_embeddings(self):
        return self.unembed

    def forward(self, tokens, use_cache):
        said = torch.zeros(*tokens.shape, self.unembed.in_features)
        for row, ids in enumerate(tokens.tolist()):
            follows = {}
            for at in range(len(ids)):
                pair = tuple(ids[max(0, at - 1) : at + 1])
                said[row, at, follows.get(pair, 0)] = 1
                if at + 1 < len(ids):
                    follows[pair] = ids[at + 1]
        return type("out", (), {"logits": self.unembed(said)})


def test_a_model_that_copies_is_right_and_the_batch_does_not_matter(model):
    copier = Copier(len(model.tokenizer))
    items = [
        Item("The park and John and Mary the park and", " John and Mary"),
        Item("The John and Mary John and", " Mary"),
        Item("the park the park the", " John"),
    ]
    every = text_copying._tokens_right(copier, model.tokenizer, 400, items)
    assert [row.tolist() for row in every] == [
        row.tolist()
        for item in items
        for row in text_copying._tokens_right(copier, model.tokenizer, 400, [item])
    ]
    assert every[0].all() and every[1].all() and not every[2].any()


def test_scores_are_those_of_greedy_decoding(model):
    """Exact answers and wrong ones, made from what the model itself says."""
    tokenizer, network = model.tokenizer, model.original_model
    prompt = "The park"
    ids = tokenizer(prompt).input_ids
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    text = tokenizer.decode(ids)
    if tokenizer(text).input_ids != ids:
        pytest.skip("the model's words do not make the same tokens again")
    answer = text[len(prompt) :]
    right, wrong = tokens_right(model, [Item(prompt, answer), Item(prompt, " the the the")])
    assert right.all() and not wrong.all()


def test_what_cannot_be_read_is_refused(model):
    long = Item("the " * 5000, " end")
    with pytest.raises(UsageError, match=r"tokens, the model reads \d+"):
        tokens_right(model, [long])
    with pytest.raises(UsageError, match="does not begin a token"):
        tokens_right(model, [Item("the park", "")])
    with pytest.raises(UsageError, match="give 3 to"):
        phone_books(2, 1, 0)
    with pytest.raises(UsageError, match="'backward': choose one of: forward, reversed"):
        phone_books(4, 1, 0, "backward")
    with pytest.raises(UsageError, match="5 or more"):
        texts_to_copy(model.tokenizer, 4, 1, 0)


def test_guessing_another_number_by_hand():
    item = Item("", " 1234", (" 1299", " 9999", " 1239"))
    assert text_copying.right_if_another([item], -1) == [0.75]
    assert text_copying.right_if_another([item], None) == [pytest.approx((0.5 + 0 + 0.75) / 3)]


def test_loss_per_byte_is_the_sum_over_the_bytes(model):
    expected = float(text_loss(model).sum()) / len(NEUTRAL_TEXT.encode())
    assert text_copying.loss_per_byte(model) == pytest.approx(expected)
    assert expected > 0
