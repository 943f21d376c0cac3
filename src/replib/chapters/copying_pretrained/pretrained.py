"""Prompts that ask a pretrained model to repeat: phone books and running text (Jelassi et al.,
2402.01032, Sec. 4), and how right it is.

Everything is scored given the true tokens before (teacher forcing). An answer whose tokens are all
the most probable ones is exactly what greedy decoding gives, so the share of *whole* answers is the
same as in the paper, which decodes; the share of single tokens is not, and is called so.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.interventions.generation import MAX_TOKENS, NEUTRAL_TEXT, text_loss
from replib.prompts.texts import public_domain_text

ORDERS = ("forward", "reversed")
_FIRST, _LAST = (
    names.split()
    for names in (
        "Alice Brian Carla David Elena Frank Grace Henry Irene James Karen Louis Maria Nancy Oscar "
        "Peter Ralph Sarah Terry Wanda Aaron Bruce Clara Diana Edith Felix Helen Isaac Julia Kevin "
        "Laura Mason Nadia Olive Pedro Roger Simon Tessa Vince Wendy",
        "Adams Baker Clark Davis Evans Fisher Green Harris Irwin Jones Keller Lewis Moore Nolan "
        "Owens Parker Quinn Reed Smith Turner Underwood Vance Walker Young Zimmer Abbott Brooks "
        "Carter Dixon Ellis Foster Gibson Hunt Ingram Jensen Knight Lawson Mills Norris Porter",
    )
)


@dataclass(frozen=True)
class Item:
    """A prompt and the text that has to follow it."""

    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()  # answers of the other entries of the book, in its order


def phone_books(n_entries: int, n_items: int, seed: int, order: str = "forward") -> list[Item]:
    """Books of lines "First Last: number"; two other entries as examples; then a name (Sec. 4.3).

    No name occurs twice in a book. Numbers have ten digits, the first of them 6 to 9, as in the
    released code. With the order "reversed" the name is given before the book as well, so that a
    reader knows what to keep (Waleffe et al., 2406.07887, Sec. 3.3). Raises UsageError for another
    order, fewer than 3 entries, or more than there are names.
    """
    most = len(_FIRST) * len(_LAST)
    if order not in ORDERS:
        raise UsageError(f"order {order!r}: choose one of: {', '.join(ORDERS)}")
    if not 3 <= n_entries <= most:
        raise UsageError(f"a phone book of {n_entries} entries: give 3 to {most}")
    rng = random.Random(f"{seed} {n_entries}")
    return [_phone_book(rng, n_entries, order) for _ in range(n_items)]


def _phone_book(rng: random.Random, n_entries: int, order: str) -> Item:
    places = rng.sample(range(len(_FIRST) * len(_LAST)), n_entries)
    names = [f"{_FIRST[p % len(_FIRST)]} {_LAST[p // len(_FIRST)]}" for p in places]
    numbers = [str(rng.randrange(6 * 10**9, 10**10)) for _ in names]
    asked, *shown = rng.sample(range(n_entries), 3)
    lines = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
    parts = ["\n".join(lines), "\n".join(lines[i] for i in shown), f"{names[asked]}:"]
    if order == "reversed":
        parts.insert(0, f"What is the number of {names[asked]}?")
    wrong = tuple(f" {number}" for i, number in enumerate(numbers) if i != asked)
    return Item("\n\n".join(parts), f" {numbers[asked]}", wrong)


def texts_to_copy(
    tokenizer: PreTrainedTokenizerBase,
    n_tokens: int,
    n_items: int,
    seed: int,
    *,
    shuffled: bool = False,
) -> list[Item]:
    """A text, the same text again, and its first word; the rest of it is to follow (Sec. 4.2).

    The texts are about `n_tokens` tokens of the World English Bible, not of C4 as in the paper:
    whole words, as many as fit. A model may know them by heart; `shuffled` puts the words of the
    same texts in random order. Raises UsageError for fewer than 5 tokens.
    """
    if n_tokens < 5:
        raise UsageError(f"a text of {n_tokens} tokens: give 5 or more")
    words, unknown = _words(), tokenizer.unk_token_id
    rng = random.Random(f"{seed} {n_tokens}")
    items = []
    while len(items) < n_items:
        start = rng.randrange(len(words) - n_tokens)
        some = words[start : start + n_tokens]  # a word has at least one token
        if unknown in tokenizer(" ".join(some)).input_ids:  # a string of these is no text
            near = words[start : start + 50 * n_tokens]
            some = [w for w in near if unknown not in tokenizer(f" {w}").input_ids][:n_tokens]
        while (extra := len(tokenizer(" ".join(some)).input_ids) - n_tokens) > 0:
            some = some[: -max(1, extra // 3)]
        if shuffled:
            random.Random(start).shuffle(some)
        text = " ".join(some)
        items.append(Item(f"{text}\n\n{text}\n\n{some[0]}", " " + " ".join(some[1:])))
    return items


def books(lengths: Sequence[int], n_items: int, seed: int) -> dict[str, list[list[Item]]]:
    """Phone books of each length, in both orders: "forward" and "reversed"."""
    return {order: [phone_books(n, n_items, seed, order) for n in lengths] for order in ORDERS}


def texts(
    tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], n_items: int, seed: int
) -> dict[str, list[list[Item]]]:
    """Texts to copy of each length, and the same texts with shuffled words."""
    kinds = {"text": False, "shuffled words": True}
    return {
        kind: [texts_to_copy(tokenizer, n, n_items, seed, shuffled=mixed) for n in lengths]
        for kind, mixed in kinds.items()
    }


@cache
def _words() -> list[str]:
    """A million words are read and divided once, not for every length."""
    return public_domain_text().split()


def tokens_right(model: TransformerBridge, items: Sequence[Item]) -> list[Bool[Tensor, " token"]]:
    """For each item: is each token of the answer the most probable one, given all before it?
    Prompts of one batch are padded behind, where no causal model looks; only the answers' positions
    are read out. Raises UsageError for an item that is longer than the model can read, or whose
    answer does not begin a token."""
    network, tokenizer = model.original_model, model.tokenizer
    pairs = []  # tokens of both, and how many belong to the prompt
    for item in items:
        before, whole = (tokenizer(t).input_ids for t in (item.prompt, item.prompt + item.answer))
        if whole[: len(before)] != before or len(whole) == len(before):
            raise UsageError(
                f"the answer {item.answer[:20]!r} does not begin a token of this tokenizer"
            )
        pairs.append((whole, len(before)))
    lengths = [len(ids) for ids, _ in pairs]
    longest = max(lengths, default=0)
    if longest > (n_ctx := model.cfg.n_ctx):
        raise UsageError(
            f"a prompt and its answer have {longest} tokens, the model reads {n_ctx}; "
            "choose shorter books or texts"
        )
    device = next(network.parameters()).device
    found: dict[int, Tensor] = {}
    for some in _batches(lengths):
        width = max(lengths[i] for i in some)
        tokens = torch.tensor([pairs[i][0] + [0] * (width - lengths[i]) for i in some])
        spans = [range(pairs[i][1] - 1, lengths[i] - 1) for i in some]
        rows, places = torch.tensor([(row, at) for row, span in enumerate(spans) for at in span]).T
        with torch.inference_mode(), read_out_at(network, rows, places):
            said = network(tokens.to(device), use_cache=False).logits.argmax(-1).flatten().cpu()
        right = said == tokens[rows, places + 1]
        for row, i in enumerate(some):
            found[i] = right[rows == row]
    return [found[i] for i in range(len(items))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Items of similar length together, from short to long, at most `MAX_TOKENS` a batch."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if some and (len(some) + 1) * lengths[i] > MAX_TOKENS:
            yield some
            some = []
        some.append(i)
    if some:
        yield some


def read_out_at(
    network: torch.nn.Module, rows: Int[Tensor, " place"], places: Int[Tensor, " place"]
) -> RemovableHandle:
    """While it is open, the network's logits are [1 place vocabulary], at these positions only: a
    vocabulary of 262,000 for every token of a phone book would fill the memory."""
    return network.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (args[0][rows, places][None], *args[1:])
    )


def right_if_another(items: Sequence[Item], place: int | None) -> list[float]:
    """Share of the answer's characters that are right when another entry's number is said, for each
    item: that of `place` (-1 is the last one in the book), or on average over all (None)."""

    def share(said: str, answer: str) -> float:
        return sum(a == b for a, b in zip(said[1:], answer[1:], strict=True)) / len(answer[1:])

    def of(item: Item) -> float:
        some = item.wrong if place is None else [item.wrong[place]]
        return sum(share(said, item.answer) for said in some) / len(some)

    return [of(item) for item in items]


def right_if_last(books: Sequence[Sequence[Item]]) -> list[float]:
    """For books of each length, the share of digits that are right if the last other entry is said,
    mean over items."""
    shares = [right_if_another(items, -1) for items in books]
    return [sum(some) / len(some) for some in shares]


def loss_per_byte(model: TransformerBridge, text: str = NEUTRAL_TEXT) -> float:
    """Loss on a neutral text after its first token, in nats per byte (whatever the tokenizer)."""
    return float(text_loss(model, text).sum()) / len(text.encode())


def perplexity(model: TransformerBridge) -> float:
    """On the same text, a token; of use between models with one tokenizer only."""
    return text_loss(model).mean().exp().item()
