"""Strings to copy and look up in: formats by hand, answers where they say, scores by hand."""

import pytest
import torch

from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.strings import ALPHABET, EOS, Strings
from replib.errors import UsageError


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


def test_what_is_asked_for_occurs_once_and_can_be_anywhere():
    strings = copying.suffix_ngram(2000, 100, seeded())  # by chance 10 of these would not
    assert all(text[1:101].count(text[102:105]) == 1 for text in texts(strings))
    source = copying.suffix_ngram(2000, 7, seeded()).source
    assert set(source[:, 0].tolist()) == {4, 5}  # letters 3 and 4, behind `$`


def test_a_phone_book_has_no_name_twice_and_digits_as_numbers():
    for text in texts(copying.phone_book(20, 30, seeded())):
        book, asked = text[1:].split("|")
        entries = [book[i : i + 6] for i in range(0, len(book), 6)]
        assert len(entries) == len({entry[:2] for entry in entries}) == 30
        assert asked[:-1] in entries
        assert set("".join(entry[2:] for entry in entries)) <= set("abcdefghij")


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
