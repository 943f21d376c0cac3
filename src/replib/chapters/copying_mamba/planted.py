"""Networks whose answers are known, for every task of the chapter; nothing is trained.

A planted Transformer copies strings of any length by looking up the last n letters: this is the
construction of the theory (Jelassi et al., 2402.01032, Sec. 2, Thm 2.3) with Hard-ALiBi's windows,
in two layers of a Llama:

1. Heads 0 to n of layer 0 see the last 1 to n + 1 tokens, all alike. The mean over k + 1 tokens,
   times k + 1, less that over k tokens, times k, is the token k places back: its code is written to
   the slot `back` k.
2. The *copy head* of layer 1 asks with the last n tokens and is answered by positions whose n
   tokens *before* them agree, later letters counting more than all earlier ones together; it writes
   the token found there to the slot `output`. `$` and `|` have one code, so that the first letters
   are found too; where `|` is found, the string has ended, and `.` is said.

So it copies whatever has no run of n letters twice: it fails in at most L² 26^-n of the strings
(Lemma 2.4), and in the letters after a run that occurs twice from n letters on.

A `Register` stands for a network with a fixed state, and in lookups for any: it holds the first so
many tokens of a string, and answers from these alone. It is a rule, and has no weights.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from replib.chapters.copying_mamba.networks import SPECIAL, set_positions
from replib.chapters.copying_mamba.strings import (
    ALPHABET,
    BOS,
    EOS,
    N_LETTERS,
    PAD,
    SEPARATOR,
)
from replib.chapters.copying_mamba.training_grid import BATCH, EVERY, SOLVED
from replib.errors import UsageError

COPY_LAYER = 1
_CODES = N_LETTERS + 2  # letters, `$` or `|`, anything else
_TOKENS = len(ALPHABET)
_BALLAST = 100.0  # makes the norms of all residuals alike
_SHARP = 30.0  # attention score of the earliest of the n letters


def planted_copier(n_gram: int = 4) -> LlamaForCausalLM:
    """The model; its copy head is (COPY_LAYER, n_gram + 1). Raises UsageError below n_gram 1."""
    if n_gram < 1:
        raise UsageError(f"planted copier: n_gram is {n_gram}; give 1 or more")
    # Slots of the residual stream: token, code k places back for k = 0 to n, output, ballast.
    back = [_TOKENS + _CODES * k for k in range(n_gram + 1)]
    output = back[-1] + _CODES
    ballast = output + _TOKENS
    n_heads, head = 2 * (n_gram + 1), _CODES * n_gram
    width = -(-(ballast + 1) // n_heads) * n_heads  # Llama wants a multiple
    network = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=1,
            num_hidden_layers=2,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads,
            head_dim=max(head, _TOKENS),
            max_position_embeddings=2048,
            attn_implementation="eager",
            **SPECIAL,
        )
    )
    set_positions(network, "hard-alibi")
    with torch.no_grad():
        _set_weights(network, n_gram, back, output, ballast)
    return network.eval()


def _set_weights(
    network: LlamaForCausalLM, n_gram: int, back: list[int], output: int, ballast: int
) -> None:
    model, size = network.model, network.config.head_dim
    for weight in network.parameters():
        weight.zero_()
    tokens = torch.arange(_TOKENS)
    codes = tokens.clamp_max(N_LETTERS + 1)
    codes[[BOS, SEPARATOR]] = N_LETTERS
    model.embed_tokens.weight[tokens, tokens] = 1
    model.embed_tokens.weight[tokens, back[0] + codes] = 1
    model.embed_tokens.weight[:, ballast] = _BALLAST
    # A norm divides by the root mean square, which is that of the ballast.
    for norm in [layer.input_layernorm for layer in model.layers] + [model.norm]:
        norm.weight.fill_(_BALLAST / network.config.hidden_size**0.5)

    code = torch.arange(_CODES)
    first, second = (layer.self_attn for layer in model.layers)
    for k in range(n_gram + 1):
        first.v_proj.weight[k * size + code, back[0] + code] = 1
        if k:
            first.o_proj.weight[back[k] + code, k * size + code] = k + 1
            first.o_proj.weight[back[k] + code, (k - 1) * size + code] = -k

    start = (n_gram + 1) * size  # the first head that sees everything
    for k in range(n_gram):
        weight = (_SHARP * 2 ** (n_gram - 1 - k) * size**0.5) ** 0.5
        rows = start + k * _CODES + code
        second.q_proj.weight[rows, back[k] + code] = weight
        second.k_proj.weight[rows, back[k + 1] + code] = weight
    said = tokens.clone()
    said[SEPARATOR] = EOS
    second.v_proj.weight[start + tokens, tokens] = 1
    second.o_proj.weight[output + said, start + tokens] = 1
    network.lm_head.weight[tokens, output + tokens] = 20


class Register(nn.Module):
    """Answers a task from the first `capacity` tokens of what it has to keep: the string of a copy
    or a suffix lookup, the entries of a phone book. In a prefix lookup it keeps the answer alone,
    so it is right at any length up to `furthest`. Beyond, it says a wrong letter."""

    def __init__(self, task: str, capacity: int, furthest: int = 10_000):
        super().__init__()
        self.task, self.capacity, self.furthest = task, capacity, furthest
        self.nothing = nn.Parameter(torch.zeros(1))  # of which it has none

    def forward(self, tokens: Int[Tensor, "string pos"]) -> Float[Tensor, "string pos v"]:
        bars = (tokens[0] == SEPARATOR).nonzero().flatten().tolist()
        key = {"copy": 0, "prefix_ngram": 3, "suffix_ngram": 3, "phone_book": 2}[self.task]
        first, end = (bars[0] + 1, bars[1]) if self.task == "prefix_ngram" else (1, bars[0])
        asked = end + 1 if self.task in ("copy", "prefix_ngram") else end + 1 + key
        n_answer = end - first if self.task == "copy" else 3 if key == 3 else 4
        x = tokens[:, first:end]
        at = torch.zeros(len(tokens), dtype=torch.long)
        if key:
            g = (
                tokens[:, 1 : 1 + key]
                if self.task == "prefix_ngram"
                else tokens[:, end + 1 : asked]
            )
            runs = x.unfold(1, key, 6 if self.task == "phone_book" else 1)
            found = (runs == g[:, None]).all(-1).int().argmax(1)
            at = found * (6 if self.task == "phone_book" else 1) + key
        source = (at[:, None] + torch.arange(n_answer)).clamp_max(x.shape[1] - 1)
        said = x.gather(1, source)
        limit = 10_000 if self.task == "prefix_ngram" else self.capacity
        wrong = (source >= limit) | (x.shape[1] > self.furthest)
        said = torch.where(wrong, (said + 1) % N_LETTERS, said)
        logits = torch.zeros(*tokens.shape, _TOKENS)
        for i in range(min(n_answer + 1, tokens.shape[1] - asked + 1)):
            token = said[:, i] if i < n_answer else torch.full((len(tokens),), EOS)
            logits[torch.arange(len(tokens)), asked - 1 + i, token] = 20.0
        return logits

    def pattern(self, tokens: Int[Tensor, "string pos"]) -> Float[Tensor, "string dest src"]:
        """Where it looks while it copies: at the letter to be said, if it holds it."""
        n = int((tokens[0] == SEPARATOR).nonzero()[0, 0]) - 1
        found = torch.zeros(len(tokens), tokens.shape[1], tokens.shape[1])
        held = torch.arange(min(n, self.capacity))
        found[:, n + 1 + held, 1 + held] = 1
        return found

    def state(self, read: Int[Tensor, "string pos"]) -> Float[Tensor, "string feature"]:
        """What it holds of `$` and a string: the letters of its places, one-hot."""
        kept = read[:, 1 : 1 + self.capacity]
        return nn.functional.one_hot(kept, N_LETTERS).float().flatten(1)

    def said(
        self, state: Float[Tensor, "string feature"], n_answer: int
    ) -> Int[Tensor, "string answer"]:
        """The copy that it makes of such a state: the letters, wrong ones for those that it does
        not hold, and the final `.`."""
        letters = state.unflatten(1, (-1, N_LETTERS)).argmax(-1)
        said = torch.full((len(state), n_answer), EOS)
        said[:, : n_answer - 1] = PAD
        said[:, : letters.shape[1]] = letters
        return said


# By study and architecture: how much each seed of a register holds, and how far it goes.
_HELD = {
    "copy": {"rope": 40, "nope": 36, "alibi": 45, "mamba": 22, "mamba2": 24, "lstm": 9},
    "copy-10": {"mamba2": 14},
    "copy-40": {"mamba2": 44},
    "states": {"mamba2-16": 10, "mamba2-4": 6},
    "prefix": {"hard-alibi": 10_000, "nope": 10_000, "mamba2": 10_000},
    "suffix": {"hard-alibi": 10_000, "mamba2": 30},
    "phone": {"hard-alibi": 48, "mamba2": 20, "hybrid": 48},
}
_ARRIVE = {"hard-alibi": 18, "rope": 22, "nope": 30, "alibi": 20, "hybrid": 25}  # points
_SLOW = 95  # points, of any network with a fixed state


def planted_network(study: str, task: str, architecture: str, seed: int) -> nn.Module:
    """The network that stands for a seed of an architecture in a study. Hard-ALiBi copies with the
    planted Transformer, and is the same with every seed; others are registers, whose capacity
    differs a little from seed to seed."""
    if architecture == "hard-alibi" and task == "copy":
        return planted_copier()
    held = _HELD[study][architecture]
    furthest = 40 + seed % 3 if architecture == "nope" and task == "prefix_ngram" else 10_000
    return Register(task, held + (seed % 3 - 1 if held < 10_000 else 0), furthest).eval()


def planted_curve(architecture: str, seed: int, budget: int) -> dict[str, list[float]]:
    """A curve that ends when the task is done: after some 20 points for networks with attention, 95
    for those with a fixed state, of which the LSTM never gets there; a little later or earlier from
    seed to seed."""
    last = budget // EVERY
    there = _ARRIVE.get(architecture, _SLOW) + 2 * (seed % 5)
    there = last + 1 if architecture == "lstm" else min(there, last)
    points = range(1, min(there + 1, last) + 1)
    right = [1.0 if point >= there else 0.0 for point in points]
    return {
        "examples": [point * EVERY * BATCH for point in points],
        "string": right,
        "char": [max(share, 1 / N_LETTERS) for share in right],
        "loss": [0.0 if share >= SOLVED else 3.2 for share in right],
    }
