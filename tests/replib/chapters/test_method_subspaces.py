"""Prompts about number, and what a change of their streams does, worked by hand."""

import pytest
import torch

from replib.chapters.method.subspaces import (
    NOUNS,
    last_logits,
    logits_after,
    number_prompts,
    streams,
    verb_shares,
)
from replib.models.tiny import tiny_model
from replib.prompts.vocabulary import _PIECE, whole_words, word_tokenizer

KNOWN = NOUNS.split()[:8]


def tokenizer_of(nouns, without=""):
    """One that knows these nouns in both numbers, and one noun, " horse", in the singular only."""
    both = [f" {noun} {noun}s" for noun in nouns]
    tokenizer = word_tokenizer([*both, " horse", "The x here is are"])
    words = [word for word in tokenizer.get_vocab() if word not in ("<pad>", "<eos>", "<unk>")]
    return whole_words((word for word in words if word != without), _PIECE)


def test_every_noun_is_asked_about_in_both_directions():
    tokenizer = tokenizer_of(KNOWN)
    prompts = number_prompts(tokenizer, seed=0)
    assert prompts.n_known == 8 and len(prompts.base) == 16
    assert prompts.text[1] == "The cat here" and prompts.text[9] == "The cats here"
    assert [tokenizer.decode(ids) for ids in prompts.base] == list(prompts.text)
    assert prompts.verb_text[1] == ("is", "are") and prompts.verb_text[9] == ("are", "is")
    assert tokenizer.batch_decode(prompts.verb[9][:, None]) == [" are", " is"]
    assert prompts.noun[[1, 9]].tolist() == [1, 1] and prompts.number[[1, 9]].tolist() == [0, 1]
    assert prompts.place.tolist() == [1] * 16
    assert prompts.of_source(prompts.base)[1].equal(prompts.base[9])
    assert prompts.of_source(prompts.base)[9].equal(prompts.base[1])


@pytest.mark.parametrize(
    ("tokenizer", "known"), [(tokenizer_of(KNOWN[:7]), 7), (tokenizer_of(KNOWN, " are"), 0)]
)
def test_a_tokenizer_without_the_words_gets_names(tokenizer, known):
    prompts = number_prompts(tokenizer, seed=0)
    assert prompts.n_known == known and len(prompts.base) == 16
    assert not prompts.text[0].startswith("The dog")
    differ = prompts.base != prompts.of_source(prompts.base)
    assert differ.sum(1).tolist() == [1] * 16
    assert differ[torch.arange(16), prompts.place].all()


def test_a_stream_before_the_first_layer_decides_what_the_model_reads():
    model = tiny_model("gpt2")
    prompts = number_prompts(model.tokenizer, seed=0)
    x = streams(model, prompts)
    plain = last_logits(model, prompts.base)
    rows = torch.tensor([3, 0])
    as_it_was = logits_after(model, prompts, x, 0, lambda x, source: x, rows)
    as_source = logits_after(model, prompts, x, 0, lambda x, source: source, rows)
    assert torch.allclose(as_it_was, plain[rows], atol=1e-5)
    assert torch.allclose(as_source, prompts.of_source(plain)[rows], atol=1e-5)
    assert not torch.allclose(as_source, plain[rows], atol=1e-2)


def test_a_stream_before_a_later_layer_comes_from_the_same_layer_of_the_source():
    model = tiny_model("gpt2")
    prompts = number_prompts(model.tokenizer, seed=0)
    _, cache = model.run_with_cache(prompts.of_source(prompts.base))

    def from_source(value, hook):
        """Of base prompt 3, at its noun."""
        value = value.clone()
        value[0, prompts.place[3]] = cache["resid_pre", 2][3, prompts.place[3]]
        return value

    hooks = [("blocks.2.hook_resid_pre", from_source)]
    by_hand = model.run_with_hooks(prompts.base[3:4], fwd_hooks=hooks)[:, -1]
    x, row = streams(model, prompts), torch.tensor([3])
    given = logits_after(model, prompts, x, 2, lambda x, source: source, row)
    assert torch.allclose(given, by_hand, atol=1e-5)


def test_shares_of_two_verbs():
    prompts = number_prompts(tokenizer_of(KNOWN), seed=0)
    p = torch.tensor([[[0.3, 0.1], [0.0, 0.5]], [[0.1, 0.1], [0.0, 0.0]]])
    shares = verb_shares(prompts, [1, 8], p)
    assert list(shares) == ["The cat here …", "The dogs here …"]
    first, second = (torch.tensor(list(some.values())) for some in shares.values())
    assert torch.allclose(first, torch.tensor([[0.75, 0.5], [0.25, 0.5], [0.4, 0.2]]))
    assert torch.allclose(second, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]))
    assert next(iter(shares["The dogs here …"])) == "are, of the two verbs"
