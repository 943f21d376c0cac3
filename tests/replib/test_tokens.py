"""What a tokenizer does by itself, rows that look alike, and texts longer than a model reads."""

import json
import logging

import pytest
import torch
from tokenizers import normalizers, processors

from replib.chapters.context_knob.contexts import cases_from_file
from replib.chapters.factual_recall.facts import facts_from_file, outcome
from replib.errors import UsageError
from replib.interventions.generation import continuations, text_loss
from replib.models.bridge import bridge_for, context_length, model_info
from replib.models.sources import Place
from replib.models.tiny import tiny_parts
from replib.prompts.files import colored_objects_from_file, pairs_from_file
from replib.prompts.ioi import ioi_pairs
from replib.prompts.tokens import check_text
from replib.prompts.vocabulary import word_tokenizer

TEXT = "When Mary and John arrived at the park, John handed the lemon to"
ROW = {"clean": TEXT, "corrupted": TEXT.replace("John h", "Mary h")}
ROW |= {"answer": " Mary", "foil": " John"}
SHORT = {"clean": "Then Mary", "corrupted": "Then John", "answer": " and", "foil": " to"}
PLAIN = word_tokenizer()


def with_habit(single: str):
    """The word tokenizer, with tokens around every text."""
    tokenizer = word_tokenizer()
    known = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<eos>", "<unk>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=known
    )
    return tokenizer


def bridge(tokenizer, arch: str = "gpt2", n_rows: int = len(PLAIN)):
    network = tiny_parts(arch, 0)[0]
    network.resize_token_embeddings(n_rows)
    return bridge_for(network, tokenizer, "mine", Place("here"))


def save(folder, rows):
    path = folder / "mine.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("single", "front"), [("$A <eos>", []), ("<eos> $A <eos>", [1]), ("$A <eos> <eos>", [])]
)
def test_a_token_behind_every_text_is_left_out(single, front):
    tokenizer = with_habit(single)
    model, sound = bridge(tokenizer), bridge(word_tokenizer())
    assert tokenizer(TEXT).input_ids == front + PLAIN(TEXT).input_ids
    assert "ends every text with <eos>" in model_info(model).note
    pairs, plain = (ioi_pairs(t, 4, 0) for t in (tokenizer, PLAIN))
    assert pairs.clean[:, len(front) :].equal(plain.clean)
    assert pairs.answer.equal(plain.answer)
    if not front:
        assert text_loss(model, TEXT).equal(text_loss(sound, TEXT))
        assert continuations(model, [TEXT], 3) == continuations(sound, [TEXT], 3)


def test_sound_tokenizers_stay_as_they_are():
    for tokenizer in (with_habit("<eos> $A"), with_habit("$A")):
        before, ids = tokenizer.backend_tokenizer.to_str(), tokenizer(TEXT).input_ids
        assert not model_info(bridge(tokenizer)).note.count("tokenizer")
        assert tokenizer.backend_tokenizer.to_str() == before
        assert tokenizer(TEXT).input_ids == ids


def test_an_end_that_cannot_be_left_out_is_refused():
    tokenizer = with_habit("$A <eos>")
    tokenizer.__class__ = type("Slow", (type(tokenizer),), {"is_fast": False})
    with pytest.raises(UsageError, match="model 'mine': its tokenizer ends every text with"):
        bridge(tokenizer)


@pytest.mark.parametrize(
    ("steps", "alike"),
    [
        ([normalizers.Lowercase()], "'PARIS' and 'paris'"),
        ([normalizers.NFD(), normalizers.StripAccents()], "'\u00e9t\u00e9' and 'ete'"),
    ],
)
def test_letters_that_are_read_alike_are_refused(steps, alike):
    tokenizer = word_tokenizer(["paris", "ete"])
    assert bridge(tokenizer, n_rows=len(tokenizer))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    with pytest.raises(UsageError, match=f"its tokenizer reads {alike} alike"):
        bridge(tokenizer, n_rows=len(tokenizer))


def test_roles_without_an_embedding_row_are_taken_away(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "bos_token": "[BEGIN]"})
    tokenizer.add_tokens("[more]")
    model = bridge(tokenizer)
    assert tokenizer.bos_token is None and tokenizer.pad_token == "<eos>"
    pairs = pairs_from_file(tokenizer, save(tmp_path, [ROW, SHORT]))
    assert pairs.clean.max() < len(PLAIN) and torch.isfinite(model(pairs.clean)).all()
    long = {**SHORT, "clean": "Then[more] Mary", "corrupted": "Then[more] John"}
    with pytest.raises(UsageError, match=r"row 2: clean has .\[more\]., .* no row"):
        pairs_from_file(tokenizer, save(tmp_path, [ROW, long]))
    with pytest.raises(UsageError, match="they do not belong together"):
        bridge(word_tokenizer(["zebra gnu"]))


def test_a_beginning_that_is_there_twice_is_refused(tmp_path):
    tokenizer = with_habit("<eos> $A")
    bridge(tokenizer)
    twice = {k: f"<eos>{v}" if k in ("clean", "corrupted") else v for k, v in SHORT.items()}
    with pytest.raises(UsageError, match="row 2: clean begins twice, with '<eos>'"):
        pairs_from_file(tokenizer, save(tmp_path, [ROW, twice]))
    with pytest.raises(UsageError, match="row 1: clean begins twice, with '<eos>'"):
        pairs_from_file(tokenizer, save(tmp_path, [twice]))
    assert len(pairs_from_file(word_tokenizer(), save(tmp_path, [ROW, twice]))) == 2


def test_a_chat_template_begins_once():
    tokenizer = with_habit("<eos> $A")
    tokenizer.bos_token = "<eos>"
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    turns = [{"role": "user", "content": "Then Mary"}]
    assert "one is left out" in model_info(bridge(tokenizer)).note
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "Then Mary" and tokenizer(text).input_ids[:2] == [1, *PLAIN("Then").input_ids]


# --- Longer than the context ----------------------------------------------------------------------

LONG = "\n".join([TEXT] * 40)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_row_longer_than_the_context_is_named(tmp_path, arch):
    tokenizer = word_tokenizer()
    model = bridge(tokenizer, arch)
    row = {**ROW, "clean": f"{LONG}\n{TEXT}", "corrupted": f"{LONG}\n{ROW['corrupted']}"}
    with pytest.raises(UsageError, match=r"row 2: clean has \d+ tokens; .* at most 512"):
        pairs_from_file(tokenizer, save(tmp_path, [ROW, row]))
    fact = {"subject": "Mary", "answer": "hat", "foil": "ring", "prompt": f"{LONG} Mary"}
    path = save(tmp_path, [fact])
    assert facts_from_file(path)
    with pytest.raises(UsageError, match=r"row 1: prompt, .* has \d+ tokens and 8 are written"):
        facts_from_file(path, tokenizer, 8)
    case = {"context": LONG, "question": "Who?", "prior_answer": "Mary", "context_answer": "John"}
    with pytest.raises(UsageError, match=r"row 1: the prompt made of it has \d+ tokens and 10"):
        cases_from_file(save(tmp_path, [case]), tokenizer, 10)
    with pytest.raises(UsageError, match="tokens at once, and it reads 512"):
        text_loss(model, LONG)
    with pytest.raises(UsageError, match="and it reads 512"):
        continuations(model, [TEXT, " Mary" * 511], 4)


def test_a_text_that_just_fits():
    tokenizer = word_tokenizer()
    model = bridge(tokenizer, "llama")
    check_text(tokenizer, "row 1", " Mary" * 510, n_new=3)
    continuations(model, [" Mary" * 510], 3)
    with pytest.raises(UsageError, match="row 1 has 510 tokens and 4 are written"):
        check_text(tokenizer, "row 1", " Mary" * 510, n_new=4)


def test_how_much_a_model_reads():
    import transformers

    assert context_length(transformers.MambaConfig()) is None
    assert context_length(transformers.GPT2Config(n_positions=77)) == 77
    assert context_length(transformers.LlamaConfig(max_position_embeddings=99)) == 99
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = transformers.LlamaConfig(max_position_embeddings=99, rope_parameters=rope)
    assert context_length(config) == 198


# --- Rows that look alike -------------------------------------------------------------------------


def test_separate_accents_and_no_break_spaces_are_made_plain(tmp_path, caplog):
    fact = {"subject": "Togo", "answer": "Lome\u0301", "foil": "Lima"}
    fact |= {"prompt": "The\u00a0capital of {subject} is"}
    with caplog.at_level(logging.WARNING, "replib"):
        (found,) = facts_from_file(save(tmp_path, [fact]))
    assert found.answer == "Lom\u00e9" and found.prompt == "The capital of Togo is"
    assert "accents were joined to their letters (NFC) in row 1" in caplog.text
    assert "no-break spaces became spaces in row 1" in caplog.text
    caplog.clear()
    facts_from_file(save(tmp_path, [fact | {"answer": "Lom\u00e9", "prompt": "Togo is"}]))
    assert not caplog.text


def test_answers_are_compared_in_one_form():
    for said in (" Nuku\u2019alofa.", " Nuku'alofa", " Nuku\u02bbalofa,"):
        assert outcome(said, "Nuku\u02bbalofa") == outcome(said, "Nuku'alofa") == "memorised"
    assert outcome(" Yaounde\u0301 is", "Yaound\u00e9") == "memorised"
    assert outcome(" San\u00a0Jos\u00e9", "San Jose\u0301") == "memorised"
    assert outcome(" Yaounde", "Yaound\u00e9") == "other"


@pytest.mark.parametrize("mark", ["\u200b", "\u00ad", "\ufeff", "\u2060", "\u200d", "\u200e"])
def test_what_nobody_sees_is_refused(tmp_path, mark):
    row = SHORT | {"foil": f" t{mark}o"}
    with pytest.raises(UsageError, match=r"row 2: foil .* is not seen and yet read"):
        pairs_from_file(PLAIN, save(tmp_path, [ROW, row]))
    with pytest.raises(UsageError, match=r"row 1: 2 .* is not seen and yet read"):
        colored_objects_from_file(PLAIN, save(tmp_path, [["Q", f"R{mark}ed"]]))
    row = {"subject": "\u0928\u094d\u200d", "answer": "A", "foil": "B", "prompt": "{subject} is"}
    assert facts_from_file(save(tmp_path, [row]))  # a joiner between letters that need it


@pytest.mark.parametrize("lines", [False, True])
def test_a_key_that_is_there_twice_is_refused(tmp_path, lines):
    row = json.dumps(SHORT)
    twice = row[:-1] + ', "foil": " Mary"}'
    path = save(tmp_path, "\n".join([row, twice]) if lines else f"[{row}, {twice}]")
    path = path.rename(path.with_suffix(".jsonl" if lines else ".json"))
    with pytest.raises(UsageError, match="row 2: key 'foil' is there twice"):
        pairs_from_file(PLAIN, path)
