"""A planted Transformer that copies strings of any length by looking up the last n letters.

Nothing is trained: this is the construction of the theory (Jelassi et al., 2402.01032, Sec. 2, Thm
2.3) with Hard-ALiBi's windows, in two layers of a Llama:

1. Heads 0 to n of layer 0 see the last 1 to n + 1 tokens, all alike. The mean over k + 1 tokens,
   times k + 1, less that over k tokens, times k, is the token k places back: its code is written to
   the slot `back` k.
2. The *copy head* of layer 1 asks with the last n tokens and is answered by positions whose n
   tokens *before* them agree, later letters counting more than all earlier ones together; it writes
   the token found there to the slot `output`. `$` and `|` have one code, so that the first letters
   are found too; where `|` is found, the string has ended, and `.` is said.

So it copies whatever has no run of n letters twice: it fails in at most L² 26^-n of the strings
(Lemma 2.4), and in the letters after a run that occurs twice from n letters on.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replib.chapters.copying_mamba.networks import SPECIAL, set_positions
from replib.chapters.copying_mamba.strings import ALPHABET, BOS, EOS, N_LETTERS, SEPARATOR
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
