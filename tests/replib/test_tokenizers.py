"""What a tokenizer does by itself, texts that look the same, and texts that are too long."""

import json
import unicodedata

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from replib.chapters.context_knob import contexts
from replib.chapters.context_knob import file_readers as case_readers
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall import file_readers as fact_readers
from replib.errors import UsageError
from replib.files import read_yaml
from replib.models.bridge import Place, bridge_for, context_length, model_info
from replib.models.tiny import tiny_model, tiny_parts
from replib.prompts.files import pairs_from_file
from replib.prompts.forms import compared, one_form
from replib.prompts.ioi import ioi_pairs
from replib.prompts.tokens import Limits, check_text, made_ready
from replib.prompts.vocabulary import word_tokenizer

ROW = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupted": "When Mary and John went to the store, Mary gave a drink to",
    "answer": " Mary",
    "foil": " John",
}


def ending(single, tokenizer=None):
    tokenizer = tokenizer or word_tokenizer()
    marks = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<eos>", "<pad>")]
    processor = TemplateProcessing(single=single, special_tokens=marks)
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def rows(path, *some):
    path.write_text(json.dumps(list(some), ensure_ascii=False))
    return path


@pytest.mark.parametrize("single", ["$A <eos>", "<pad> $A <eos> <eos>", "$A <pad>"])
def test_nothing_stands_behind_a_text(single):
    """With a token behind every text, pairs and first tokens are those without it."""
    network, tokenizer = tiny_parts("gpt2", 0)
    model = bridge_for(network, ending(single, tokenizer), "mine", Place(source="here", note="A."))
    plain = word_tokenizer()
    start = [0] if single.startswith("<pad>") else []
    assert model.tokenizer("the store").input_ids == [*start, *plain("the store").input_ids]
    assert facts.first_token(model.tokenizer, "Paris") == facts.first_token(plain, "Paris")
    theirs, ours = ioi_pairs(model.tokenizer, 6, 0), ioi_pairs(plain, 6, 0)
    assert torch.equal(theirs.clean[:, len(start) :], ours.clean)
    assert torch.equal(theirs.positions["S2"] - len(start), ours.positions["S2"])
    assert model_info(model).note.startswith("A. Its tokenizer ends every text with")
    assert model_info(tiny_model("gpt2")).note.count("tokenizer") == 0


def test_roles_and_words_without_a_row():
    tokenizer = word_tokenizer()
    n = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    made_ready(tokenizer, Limits(n, None))
    assert tokenizer.pad_token == "<eos>"
    with pytest.raises(UsageError, match=r"row 1: clean has '\[PAD\]', which the model's"):
        check_text(tokenizer, "row 1: clean", "the [PAD] store")
    with pytest.raises(UsageError, match=r"1 have none, .* is one; they do not belong together"):
        made_ready(tokenizer, Limits(n - 1, None))
    model = tiny_model("gpt2")
    with pytest.raises(UsageError, match=f"token {n}, and its embedding has {n} rows"):
        model.original_model(torch.tensor([[n]]))


@pytest.mark.parametrize("template", ["{{ bos_token }}", "<eos>"])
def test_a_chat_template_begins_once(template):
    tokenizer = ending("<eos> $A")
    tokenizer.bos_token = "<eos>"
    turns = [{"role": "user", "content": "the store"}]
    tokenizer.chat_template = template + "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<eos>the store\n"
    assert "one is left out" in made_ready(tokenizer, Limits(len(tokenizer), None))
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "the store\n"


def test_a_prompt_begins_once(tmp_path):
    tokenizer = ending("<eos> $A")
    twice = {**ROW, "clean": "<eos>" + ROW["clean"], "corrupted": "<eos>" + ROW["corrupted"]}
    with pytest.raises(UsageError, match="row 2: clean begins twice, with '<eos>'"):
        pairs_from_file(tokenizer, rows(tmp_path / "mine.json", ROW, twice))


def test_a_key_that_is_there_twice_is_refused_with_its_row(tmp_path):
    path = rows(tmp_path / "mine.json", ROW, ROW)
    text = path.read_text()
    path.write_text(text[:-2] + ', "foil": " Tom"}]')
    with pytest.raises(UsageError, match="row 2: key 'foil' is there twice"):
        pairs_from_file(word_tokenizer(), path)


@pytest.mark.parametrize("written", ["Bogotá", "Co\u0302te\u00a0d’Ivoire", "Bo\u00adgo\u200btá"])
def test_answers_match_what_the_model_writes(written, tmp_path, capsys):
    row = {"subject": "X", "prompt": "The capital of X is", "foil": "Lima"}
    row |= {"answer": unicodedata.normalize("NFD", written)}
    (fact,) = facts.facts_from_file(rows(tmp_path / "mine.json", row))
    usual = {"B": "Bogotá", "C": "Côte d'Ivoire"}[written[0]]
    assert facts.outcome(f" {usual}.", fact.answer) == "memorised"
    assert facts.outcome(unicodedata.normalize("NFD", usual), fact.answer) == "memorised"
    assert "mine.json: read in one form: " in capsys.readouterr().out
    assert one_form("Łódź 3²") == ("Łódź 3²", [])
    assert compared("Ｌｉｍａ") == "Lima"


def test_letters_that_look_alike_are_refused(tmp_path):
    row = {**ROW, "answer": " \u041cary"}  # a Cyrillic M
    with pytest.raises(UsageError, match=r"row 1: the word '.ary' .* Latin and Cyrillic"):
        pairs_from_file(word_tokenizer(), rows(tmp_path / "mine.json", row, ROW))


@pytest.mark.parametrize("text", ["a: [007]", "a: -010", "a: 1:30", "a: 1:30.5", "{a: {b: 0_7}}"])
def test_a_number_of_two_readings_is_refused(text):
    with pytest.raises(UsageError, match=r"file, line 1: .* without a leading zero or a colon"):
        read_yaml(text, "file")
    assert read_yaml("a: [0, 10, -7, 0.5, '007', 0x10]", "f") == {"a": [0, 10, -7, 0.5, "007", 16]}


def test_rows_longer_than_the_context_are_refused(tmp_path):
    tokenizer = word_tokenizer(["Lima Oslo X is"])
    made_ready(tokenizer, Limits(len(tokenizer), 24))
    long = {key: ROW[key].replace("When", "When " * 20) for key in ("clean", "corrupted")}
    with pytest.raises(UsageError, match=r"row 2: clean has 34 tokens; this model reads 24"):
        pairs_from_file(tokenizer, rows(tmp_path / "mine.json", ROW, ROW | long))
    fact = {"subject": "X", "prompt": "the store X is", "answer": "Oslo", "foil": "Lima"}
    long = fact | {"prompt": "the store store store store store store X is"}
    path = rows(tmp_path / "facts.json", fact, long)
    with pytest.raises(UsageError, match=r"row 2: .* 8 are written after it; this model reads 24"):
        fact_readers()["facts_file"](tokenizer, path)
    case = {"context": "the " * 9, "question": "who?", "prior_answer": "A", "context_answer": "B"}
    path = rows(tmp_path / "cases.json", case)
    with pytest.raises(UsageError, match=r"row 1: .* \d+ tokens and 10 are written"):
        case_readers()["conflicts_file"](tokenizer, path)
    assert len(contexts.cases_from_file(path)) == 1


def test_no_text_is_longer_than_what_the_model_reads():
    """Whoever reads it, and with rotary positions too."""
    model = tiny_model("llama")
    for n, is_refused in ((512, False), (513, True)):
        ids = torch.zeros(1, n, dtype=torch.long)
        for read in (model.original_model, model.embed):
            if is_refused:
                with pytest.raises(UsageError, match="a text of 513 tokens, and it reads 512"):
                    read(ids)
            else:
                read(ids)
    config = model.original_model.config
    config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    assert context_length(config) == 2048
