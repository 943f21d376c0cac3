"""How words become tokens."""

from collections.abc import Collection, Iterable

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError


def continuation_ids(tokenizer: PreTrainedTokenizerBase, prefix: str, word: str) -> list[int]:
    """The tokens that `word` adds after `prefix`; empty if it changes how `prefix` is read."""
    before, both = (tokenizer(text).input_ids for text in (prefix, prefix + word))
    return both[len(before) :] if both[: len(before)] == before else []


def single_token(tokenizer: PreTrainedTokenizerBase, word: str, prefix: str = "the") -> int | None:
    """The id of `word` if it is one known token after `prefix`, else None."""
    added = continuation_ids(tokenizer, prefix, word)
    return added[0] if len(added) == 1 and added[0] != tokenizer.unk_token_id else None


def single_tokens(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> dict[str, int]:
    """The words that are one token after a space, with the token."""
    found = {word: single_token(tokenizer, f" {word}") for word in words}
    return {word: token for word, token in found.items() if token is not None}


def readable_words(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    unknown = tokenizer.unk_token_id
    return unknown is None or unknown not in tokenizer(text).input_ids


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, task: str, n_prompts: int) -> None:
    if n_prompts < 1:
        raise UsageError(f"{task}: n_prompts must be at least 1, not {n_prompts}")
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise UsageError(f"{task}: needs a fast tokenizer (one that knows offsets), not {name}")


def need(task: str, **words: tuple[Collection[str], int]) -> None:
    """Refuse a tokenizer with too few words of a kind: {kind: (words, how many are needed)}."""
    for kind, (have, least) in words.items():
        if len(have) < least:
            count = f"{len(have)} {kind} as single tokens"
            raise UsageError(f"{task}: this tokenizer has {count}, {least} are needed")
