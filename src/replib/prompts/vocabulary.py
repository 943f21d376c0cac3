"""A tokenizer of whole words, for models that are made in memory."""

import re
import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from replib.prompts import words
from replib.prompts.colored_objects import ask

_PIECE = r" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]"


def word_tokenizer(more: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of the tasks above is one token, with its leading space.

    So is every word of the texts `more`, if there are any.
    Digits, punctuation and the newline are tokens of their own; any other text is <unk>. It adds
    no BOS token. `decode(ids) == text` for every prompt of the tasks.
    """
    fields = [*words.NAMES, *words.PLACES, *words.OBJECTS, *words.NOUNS, *words.SURFACES]
    fields += [*words.STARTERS, *words.COLORS, *words.COLORED_OBJECTS]
    texts = [f" {word}" for group in (*words.CAPITALS.items(), fields) for word in group]
    texts += [*more, *(f" {color.title()}" for color in words.COLORS)]
    texts += [ask("table", "there is", [("orange", "pen"), ("red", "cup"), ("red", "mug")], 0)]
    for template in (*words.IOI_TEMPLATES, *words.CAPITAL_TEMPLATES, words.GREATER_THAN_TEMPLATE):
        # A field is preceded by a space unless it is digits; the space belongs to its word.
        texts += re.split(r" ?{\w+}", template)
    pieces = {piece for text in texts for piece in re.findall(_PIECE, text)}
    return whole_words(sorted(pieces | {" ", *string.digits}), _PIECE)


def whole_words(tokens: Iterable[str], piece: str) -> PreTrainedTokenizerFast:
    """A tokenizer with these tokens after <pad>, <eos> and <unk>; each match of the expression
    `piece` is one."""
    every = dict.fromkeys(["<pad>", "<eos>", "<unk>", *tokens])
    vocab = {token: i for i, token in enumerate(every)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(piece), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
