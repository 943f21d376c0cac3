"""Small random models of several architectures, made in memory."""

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.models.bridge import bridge_for
from replib.models.sources import Place
from replib.prompts.vocabulary import word_tokenizer

ARCHITECTURES = ("gpt2", "neox", "llama", "gemma3")
TINY_NOTE = "Random weights: nothing can be found in it."


def tiny_parts(arch: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = word_tokenizer()
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids["vocab_size"] = len(tokenizer)
    rope = {
        "max_position_embeddings": 512,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    } | ids
    if arch == "gpt2":
        config = transformers.GPT2Config(n_positions=512, n_embd=32, n_layer=4, n_head=4, **ids)
    elif arch == "neox":
        config = transformers.GPTNeoXConfig(**rope)
    elif arch == "llama":
        config = transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **rope)
    elif arch == "gemma3":
        config = transformers.Gemma3TextConfig(
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **rope,
        )
    else:
        raise UsageError(f"arch {arch!r} is not known; choose one of: {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):  # the library's own initialisation leaves no trace
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            # Matrices become the noise; norms and biases keep their start (1 or 0) and gain it.
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model, tokenizer


def tiny_model(arch: str, seed: int = 0) -> TransformerBridge:
    """A random model of 4 layers × 4 heads, d_model 32, over the vocabulary of `word_tokenizer`.

    `arch` is gpt2 or neox (every head its own key and value; neox adds attention and MLP in
    parallel), llama or gemma3 (two query heads to a key/value head; gemma3 with norms after
    attention and MLP, d_head 16, and a sliding window of 8 in layers 0 and 2). Weights, biases and
    norms are all drawn from `seed` and large enough that every head matters.

    Raises UsageError for another `arch`.
    """
    model, tokenizer = tiny_parts(arch, seed)
    source = f"random weights, {arch} architecture, seed {seed}"
    return bridge_for(model, tokenizer, f"tiny-{arch}", Place(source=source, note=TINY_NOTE))
