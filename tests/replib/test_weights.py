"""Weights, modules and readouts that are not what they seem: each ends in right numbers, or in one
line that names it."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from reference import end_logit_diff
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM

from replib.errors import UsageError
from replib.interventions.generation import continuations, text_loss
from replib.interventions.head_edits import HeadEdit, read
from replib.interventions.network import Network
from replib.interventions.path_patching import path_patch
from replib.models.bridge import bridge_for, model_info
from replib.models.load import load_bare, load_model, prepare_model
from replib.models.sources import Place, absolute_model
from replib.models.tiny import tiny_model, tiny_parts
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer

TOKENIZER = word_tokenizer()
SIZE = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 3}
LLAMA = SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
TEXT = "When Mary and John went to the store, John gave a drink to"


def save(folder, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    """Change the weights of a saved model."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def llama(tmp_path):
    return save(tmp_path / "llama", transformers.LlamaConfig(**LLAMA))


def refused(call, *words):
    with pytest.raises(UsageError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], error.value


# ---- numbers that are none


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_weight_that_is_no_number_is_named(value, tmp_path):
    sizes = {"state_size": 8}
    folder = save(tmp_path / "ssm", transformers.MambaConfig(**SIZE, **sizes))
    load_model(str(folder))  # sound
    key = "backbone.layers.2.mixer.dt_proj.bias"
    path = rewrite(folder, lambda weights: weights[key].view(-1)[3:4].fill_(value))
    refused(lambda: load_model(path), "1 of the 64 values", key)
    refused(lambda: load_bare(path), "1 of the 64 values", key)


def test_what_a_number_type_cannot_hold_names_it_and_the_layer(llama):
    def grow(weights):  # each fits float16, what comes out of the second layer does not
        for name in ("gate", "up"):
            weights[f"model.layers.1.mlp.{name}_proj.weight"] *= 500
        weights["model.layers.1.mlp.down_proj.weight"].fill_(6e4)

    path = rewrite(llama, grow)
    refused(lambda: load_model(path, dtype="float16"), "float16", "float32 and bfloat16", "layer 1")
    for dtype in ("float32", "bfloat16"):
        assert load_model(path, dtype=dtype)(TEXT).isfinite().all()
    path = rewrite(llama, lambda weights: weights["lm_head.weight"][7].fill_(1e5))
    refused(lambda: load_model(path, dtype="float16"), "float16", "lm_head.weight")
    assert load_model(path)(TEXT).isfinite().all()


def test_whoever_reads_logits_is_told_that_they_are_none():
    model = tiny_model("llama")
    net, pairs = Network(model), ioi_pairs(model.tokenizer, 4, 0)
    sound = read(net, pairs).logit_diff
    model.unembed.original_component.weight[int(pairs.answer[0])] = torch.nan
    for call in (
        lambda: model(TEXT),
        lambda: model.original_model(pairs.clean),
        lambda: continuations(model, [TEXT], 2),
        lambda: text_loss(model, TEXT),
        lambda: read(Network(model), pairs),
        lambda: read(net, pairs, full_vocabulary=True),
    ):
        refused(call, "not all finite", "float32")
    assert sound.isfinite().all()
    bare, _ = tiny_parts("llama", 0)
    assert len(bare.lm_head._forward_hooks) == 0  # a watch belongs to what was loaded


# ---- adapters


@pytest.fixture
def lora(llama, tmp_path):
    """(a folder with a model, one with an adapter of it, and the adapted model)."""
    model = AutoModelForCausalLM.from_pretrained(llama)
    targets = ["q_proj", "o_proj", "lm_head"]
    config = LoraConfig(target_modules=targets, init_lora_weights=False, r=4)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    return llama, tmp_path / "adapter", adapted


def test_an_adapter_beside_a_model_is_left_out_and_said(lora, tmp_path, caplog):
    plain, adapter, adapted = lora
    expected, before = load_model(str(plain))(TEXT), model_info(load_model(str(plain)))
    assert before.note == "" and not caplog.records
    both = shutil.copytree(plain, tmp_path / "both")
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, both)
    model = load_model(str(both))
    assert torch.equal(model(TEXT), expected)
    Network(model)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "adapter_config.json" in said[0] and "left out" in said[0]
    assert "left out" in model_info(model).note
    assert type(load_bare(str(both))[0]).__name__ == "LlamaForCausalLM"
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    TOKENIZER.save_pretrained(merged)
    wanted = load_model(str(merged))(TEXT)
    assert not torch.allclose(wanted, expected, atol=1e-2)
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, merged)
    assert torch.equal(load_model(str(merged))(TEXT), wanted)  # not twice


def test_an_adapter_alone_says_that_it_is_one(lora):
    _, adapter, _ = lora
    for call in (prepare_model, load_model, load_bare):
        refused(lambda call=call: call(str(adapter)), "is an adapter alone", "merge")
    (adapter / "config.json").write_text((lora[0] / "config.json").read_text())
    refused(lambda: prepare_model(str(adapter)), "is an adapter alone", "merge")


# ---- modules and readouts that compute something else


def test_a_module_that_computes_something_else_is_refused(lora):
    model, tokenizer = tiny_parts("llama", 0)
    config = LoraConfig(target_modules=["o_proj"], layers_to_transform=[2], init_lora_weights=False)
    model.add_adapter(config)
    bridge = bridge_for(model, tokenizer, "adapted", Place("here"))
    refused(lambda: Network(bridge), "layer 2", "adapter")
    for arch in ("gpt2", "gemma3"):
        model = tiny_model(arch)
        o = model.blocks[1].attn.o.original_component
        hook = o.register_forward_hook(lambda module, args, out: 1.01 * out)
        refused(lambda model=model: Network(model), "layer 1")
        hook.remove()
        Network(model)


@pytest.mark.parametrize("change", [lambda x: 1.01 * x, lambda x: 8 * torch.tanh(x / 8)])
def test_a_scaled_or_capped_readout_is_refused(change):
    model = tiny_model("neox")
    model.unembed.original_component.register_forward_hook(lambda module, args, x: change(x))
    refused(lambda: Network(model), "not those of its final norm and unembedding")


def test_logit_scaling_is_named(tmp_path):
    config = transformers.GraniteConfig(**LLAMA, logits_scaling=4.0)
    model = load_model(str(save(tmp_path / "granite", config)))  # fine where logits are its own
    assert text_loss(model, TEXT).isfinite().all()
    refused(lambda: Network(model), "logits_scaling 4.0")


# ---- rotary positions past their length


def rotary(kind, **more):
    """A Llama made for 8 positions, told to read 64."""
    rope = {"rope_type": kind, "factor": 8.0, "original_max_position_embeddings": 8} | more
    most = 8 if kind == "dynamic" else 64
    return transformers.LlamaConfig(**LLAMA, max_position_embeddings=most, rope_scaling=rope)


def end_reads(folder):
    """Logit differences of prompts of several lengths: recomputed, and the model's own."""
    model = load_model(str(folder))
    pairs = ioi_pairs(model.tokenizer, 12, 0)
    own = [
        end_logit_diff(model(pair.clean[:, : int(pair.length)]), pair)
        for pair in (pairs[[i]] for i in range(len(pairs)))
    ]
    return read(Network(model), pairs).logit_diff[0], torch.cat(own)


@pytest.mark.parametrize("kind", ["yarn", "linear", "llama3"])
def test_scaled_rotary_positions_are_the_models_own(kind, tmp_path):
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    recomputed, own = end_reads(save(tmp_path / kind, rotary(kind, **more)))
    assert torch.allclose(recomputed, own, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_change_with_the_text_are_refused(kind, tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    folder = save(tmp_path / kind, rotary(kind, **(factors if kind == "longrope" else {})))
    refused(lambda: end_reads(folder), "prompt 0: clean has", "reads at most 8")
    model = load_model(str(folder))
    refused(lambda: model(torch.arange(9)[None]), "tokens", "beyond 8", kind)
    assert model.cfg.n_ctx == 8
    assert model(torch.arange(8)[None]).isfinite().all()
    Network(model)


# ---- what is in the files and not in the configuration


def test_weights_without_a_place_are_named(llama):
    def settle(**changes):
        config = json.loads((llama / "config.json").read_text()) | changes
        (llama / "config.json").write_text(json.dumps(config))

    settle(num_hidden_layers=2)
    refused(lambda: load_model(str(llama)), "9 weights", "model.layers.2.")
    settle(num_hidden_layers=4)
    refused(lambda: load_model(str(llama)), "lack 9 weights", "model.layers.3.")
    settle(num_hidden_layers=3)
    key = "model.layers.0.self_attn.q_proj.bias"
    path = rewrite(llama, lambda weights: weights.update({key: torch.ones(32)}))
    refused(lambda: load_model(path), "1 weights", key)


def test_what_every_old_file_carries_is_no_reason_to_refuse(tmp_path):
    config = transformers.GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4)
    folder = save(tmp_path / "gpt2", config)
    expected = load_model(str(folder))(TEXT)

    def add(weights):
        weights["transformer.h.1.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        weights["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e9)

    assert torch.equal(load_model(rewrite(folder, add))(TEXT), expected)


def test_a_readout_of_its_own_is_kept_where_the_configuration_says_tied(llama):
    expected = load_model(str(llama))(TEXT)
    config = json.loads((llama / "config.json").read_text()) | {"tie_word_embeddings": True}
    (llama / "config.json").write_text(json.dumps(config))
    model = load_model(str(llama))
    assert torch.equal(model(TEXT), expected)
    Network(model)


def test_what_a_gguf_file_says_and_nobody_reads_is_named(tmp_path, monkeypatch):
    folder, write = tmp_path / "gguf", gguf.GGUFWriter.write_header_to_file
    folder.mkdir()

    def with_more(change):
        def write_header(self, *arguments):
            change(self)
            write(self, *arguments)

        monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_header)
        write_gguf(Path(folder / "toy.gguf"))
        return str(folder)

    path = with_more(lambda writer: writer.add_rope_scaling_factor(1.0))
    assert load_model(path)("a b").isfinite().all()
    path = with_more(lambda writer: writer.add_rope_scaling_factor(8.0))
    refused(lambda: load_model(path), "llama.rope.scaling.factor = 8", "GGUF")
    path = with_more(lambda w: w.add_tensor("rope_freqs.weight", torch.ones(4).numpy()))
    refused(lambda: load_model(path), "rope_freqs.weight", "GGUF")


# ---- files that are not there, or not what they seem


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(file, llama):
    (llama / file).write_text(POINTER)
    refused(lambda: prepare_model(str(llama)), file, "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize(("part", "words"), [("tokenizer*", "no tokenizer"), ("config*", "config")])
def test_a_missing_part_is_named_before_the_run(part, words, llama):
    for path in llama.glob(part):
        path.unlink()
    refused(lambda: prepare_model(str(llama)), words)


def test_a_model_s_folder_goes_by_its_bare_name(llama, monkeypatch):
    monkeypatch.chdir(llama.parent)
    (llama.parent / "notes").mkdir()
    assert absolute_model("llama") == str(llama.resolve())
    assert absolute_model("notes") == "notes"  # no model in it: a hub's id


# ---- architectures beyond those of the chapters

HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FURTHER = HEADS | {"vocab_size": len(TOKENIZER), "intermediate_size": 64}
EXPERTS = FURTHER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OTHERS = {
    "olmo": transformers.OlmoConfig(**FURTHER),
    "qwen3-moe": transformers.Qwen3MoeConfig(**EXPERTS, num_key_value_heads=2, head_dim=8),
    "bloom": transformers.BloomConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4
    ),
    "gpt-1": transformers.OpenAIGPTConfig(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4
    ),
    "olmo2": transformers.Olmo2Config(**FURTHER),
    "granite-moe": transformers.GraniteMoeConfig(**FURTHER, num_local_experts=4),
    "falcon": transformers.FalconConfig(**HEADS, vocab_size=len(TOKENIZER)),
    "gpt-j": transformers.GPTJConfig(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    ),
    "cohere": transformers.CohereConfig(**FURTHER),
}
FAST = ("olmo", "qwen3-moe")


@pytest.mark.parametrize(
    "kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in OTHERS]
)
def test_other_architectures_run_or_are_refused(kind, tmp_path):
    """Either every step of an edit is possible, or a UsageError says what is missing."""
    folder = save(tmp_path / kind, OTHERS[kind])
    try:
        net = Network(load_model(str(folder)))
    except UsageError as error:
        assert kind != "olmo" and "\n" not in str(error) and "Error" not in str(error)
        return
    assert kind != "qwen3-moe"
    pairs = ioi_pairs(net.model.tokenizer, 4, 0)
    assert path_patch(net, pairs, "logits").logit_diff.isfinite().all()
    assert read(net, pairs, [HeadEdit()], capture=True).attribution.isfinite().all()
