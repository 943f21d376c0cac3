"""How words become tokens, and a tokenizer of whole words for planted models."""

import re
import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from replib.errors import UsageError
from replib.prompts.colored_objects import _ask
from replib.prompts.words import (
    CAPITAL_TEMPLATES,
    CAPITALS,
    COLORED_OBJECTS,
    COLORS,
    GREATER_THAN_TEMPLATE,
    IOI_TEMPLATES,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    STARTERS,
    SURFACES,
)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


def _continuation(tokenizer: PreTrainedTokenizerBase, prefix: str, word: str) -> list[int]:
    """The tokens that `word` adds after `prefix`; empty if it changes how `prefix` is read."""
    before, both = _ids(tokenizer, prefix), _ids(tokenizer, prefix + word)
    return both[len(before) :] if both[: len(before)] == before else []


def _single(tokenizer: PreTrainedTokenizerBase, word: str, prefix: str = "the") -> int | None:
    """The id of `word` if it is one known token after `prefix`, else None."""
    added = _continuation(tokenizer, prefix, word)
    return added[0] if len(added) == 1 and added[0] != tokenizer.unk_token_id else None


def _singles(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> dict[str, int]:
    """The words that are one token after a space, with the token."""
    found = {word: _single(tokenizer, f" {word}") for word in words}
    return {word: token for word, token in found.items() if token is not None}


def _readable(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return tokenizer.unk_token_id is None or tokenizer.unk_token_id not in _ids(tokenizer, text)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, task: str, n_prompts: int) -> None:
    if n_prompts < 1:
        raise UsageError(f"{task}: n_prompts must be at least 1, not {n_prompts}")
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UsageError(f"{task}: needs a fast tokenizer (one that knows offsets), not {name}")


def _too_few(task: str, what: str, have: int, need: int) -> UsageError:
    return UsageError(
        f"{task}: this tokenizer has {have} {what} as single tokens, {need} are needed"
    )


# --- A tokenizer that knows these words only ------------------------------------------------------

_PIECE = r" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]"


def word_tokenizer(more: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of the tasks above is one token, with its leading space.

    So is every word of the texts `more`, if there are any.
    Digits, punctuation and the newline are tokens of their own; any other text is <unk>. It adds
    no BOS token. `decode(ids) == text` for every prompt of the tasks.
    """
    fields = (*NAMES, *PLACES, *OBJECTS, *COLORED_OBJECTS, *COLORS, *NOUNS, *SURFACES, *STARTERS)
    texts = [f" {word}" for words in (*CAPITALS.items(), fields) for word in words]
    texts += more
    texts += [f" {color.title()}" for color in COLORS]
    texts += [_ask("table", "there is", [("orange", "pen"), ("red", "cup"), ("red", "mug")], 0)]
    for template in (*IOI_TEMPLATES, *CAPITAL_TEMPLATES, GREATER_THAN_TEMPLATE):
        # A field is preceded by a space unless it is digits; the space belongs to its word.
        texts += re.split(r" ?{\w+}", template)
    pieces = {piece for text in texts for piece in re.findall(_PIECE, text)}
    words = sorted(pieces | {" ", *string.digits})
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
