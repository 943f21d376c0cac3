"""How text becomes tokens: every tokenizer of a model passes `made_ready`, and after it a text
begins with what the tokenizer puts in front, and ends with its own last token."""

import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError


class Limits(NamedTuple):
    """What a model can read."""

    n_rows: int  # of its embedding: ids from 0 to n_rows - 1
    n_ctx: int | None  # tokens of a text; None where nothing limits them


class _Ready(NamedTuple):
    limits: Limits
    first: list[int]  # what the tokenizer puts in front of every text


_READY: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Ready] = weakref.WeakKeyDictionary()


def made_ready(tokenizer: PreTrainedTokenizerBase, limits: Limits) -> str:
    """Alter a model's tokenizer, once, so that its ids can be given to the model and continued, and
    remember the limits for `check_text`. Returns what is another than it was, in sentences.

    A token behind every text is left out: what follows it is another text. Roles (beginning, end,
    padding) are taken from tokens that the embedding has no row for. A chat template that begins
    with what the tokenizer puts in front of every text anyway loses it, and one whose tokens have
    no row is not used. UsageError where ordinary text would become ids without a row, and where
    texts that differ in case or accents are read alike: what such a model writes has neither.
    """
    said = []
    for one, other in (("PARIS", "paris"), ("\u00e9t\u00e9", "ete")):
        ids = tokenizer(one, add_special_tokens=False).input_ids
        is_known = ids and tokenizer.unk_token_id not in ids
        if is_known and ids == tokenizer(other, add_special_tokens=False).input_ids:
            problem = f"its tokenizer reads {one!r} and {other!r} alike"
            raise UsageError(f"{problem}, and here answers are told apart by their letters")
    first, last = _around(tokenizer)
    if last:
        ends = tokenizer.convert_ids_to_tokens(last)
        if tokenizer.is_fast:
            start = [*tokenizer.convert_ids_to_tokens(first), "$A"]
            known = list(zip(start, first, strict=False))
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=start, pair=[*start, "$B:1"], special_tokens=known
            )
        said.append(f"Its tokenizer ends every text with {' '.join(ends)}, which is left out.")
    added = tokenizer.added_tokens_decoder
    absent = {token: t for token, t in tokenizer.get_vocab().items() if t >= limits.n_rows}
    must = {*first, *tokenizer("\U00013080", add_special_tokens=False).input_ids}
    if lost := [token for token, t in absent.items() if t not in added or t in must]:
        raise UsageError(
            f"its tokenizer has {len(tokenizer)} tokens and its embedding {limits.n_rows} rows: "
            f"{len(lost)} have none, {min(lost)!r} is one; they do not belong together"
        )
    for role in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, role) in absent:
            setattr(tokenizer, role, None)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if last and _around(tokenizer) != (first, []):
        raise UsageError(f"its tokenizer ends every text with {ends}, so none can be continued")
    template, start = tokenizer.chat_template, "".join(tokenizer.convert_ids_to_tokens(first))
    if isinstance(template, str) and any(token in template for token in absent):
        tokenizer.chat_template = None
        said.append("Its chat template writes tokens that its embedding lacks, and is not used.")
    elif isinstance(template, str) and start and ("bos_token" in template or start in template):
        tokenizer.chat_template = (
            f"{{%- set all %}}{template}{{% endset %}}{{%- set start = {start!r} %}}"
            "{{ all[start|length:] if all.startswith(start) else all }}"
        )
        said.append(f"Its chat template writes {start}, as the tokenizer does; one is left out.")
    _READY[tokenizer] = _Ready(limits, first)
    return " ".join(said)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts in front of a text and behind it, if it does so by itself."""
    for text in ("the", "a", "0"):
        bare = tokenizer(text, add_special_tokens=False).input_ids
        whole = tokenizer(text).input_ids
        for at in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[at : at + len(bare)] == bare:
                # A normaliser, too, may write the end of a text.
                behind = {tokenizer.eos_token_id} & {*bare[-1:]} - {tokenizer.unk_token_id}
                return whole[:at], [*whole[at + len(bare) :], *behind]
    return tokenizer("").input_ids, []


def check_text(tokenizer: PreTrainedTokenizerBase, where: str, text: str, n_new: int = 0) -> None:
    """Refuse a text that the tokenizer's model cannot read, with `n_new` tokens after it, or that
    begins twice. `where` names the row and the column."""
    check_ids(tokenizer, where, tokenizer(text).input_ids, n_new)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, where: str, ids: Sequence[int], n_new: int = 0
) -> None:
    """The same for a text of which the tokens are known."""
    ready = _READY.get(tokenizer) or _Ready(Limits(len(tokenizer), None), _around(tokenizer)[0])
    start = {tokenizer.bos_token_id, *ready.first[:1]}
    if len(ids) > 1 and ids[0] in start and ids[1] in start:
        begin = tokenizer.convert_ids_to_tokens(ids[1])
        own = "the tokenizer puts one in front of every text; leave yours out"
        raise UsageError(f"{where} begins twice, with {begin!r}: {own}")
    if lost := [t for t in ids if t >= ready.limits.n_rows]:
        token = tokenizer.convert_ids_to_tokens(lost[0])
        raise UsageError(f"{where} has {token!r}, which the model's embedding has no row for")
    reads = len(ids) + max(n_new - 1, 0)  # the last one written is not read again
    if (n_ctx := ready.limits.n_ctx) is not None and reads > n_ctx:
        new = f" and {n_new} are written after it" if n_new else ""
        raise UsageError(f"{where} has {len(ids)} tokens{new}; this model reads at most {n_ctx}")


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
