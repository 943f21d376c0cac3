"""Every chapter on every architecture: `make matrix`, and a part of it in the tests.

The models are small, random, and saved in a folder with their tokenizer, as a user's would be. A
run either completes or is refused in one line; there is no third thing.
"""

import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch
import transformers
from faults import lines
from trust import ROOT, run_chapter

from bookkit.project import list_papers
from bookkit.records import read_record
from replib.chapters.context_knob import training as finetuning
from replib.chapters.context_knob.intents import SPLITS
from replib.chapters.context_knob.stored import INTENT_FORMATS
from replib.chapters.factual_recall.facts import readable, relations
from replib.models.sources import networks_of
from replib.prompts.vocabulary import word_tokenizer

# Smaller than the smoke profile: here the question is whether it runs.
SMALL = {
    "ioi-circuit-reuse": {"n_prompts": 12, "n_deep": 4, "n_accuracy": 16, "n_cobj": 16},
    "factual-recall": {"n_facts": 24, "n_tune": 6, "n_random": 3, "n_transfer": 4, "n_new": 4},
    "successor-heads": {"n_windows": 4, "n_shuffles": 50, "n_seeds": 2, "n_numbered": 16},
    "context-knob": {
        **{"n_cases": 8, "n_choose": 8, "n_learn": 8, "n_search": 2, "n_random": 3},
        "adapter_seeds": "[1]",
    },
    "copying-pretrained": {"n_items": 2, "book_lengths": "[3]", "text_lengths": "[6]"},
}


def configurations(vocabulary: dict[str, int]) -> dict[str, transformers.PretrainedConfig]:
    """By architecture: 4 layers, width 32, 4 heads where there are heads."""
    t = transformers
    size = {"hidden_size": 32, "num_hidden_layers": 4, **vocabulary}
    opt = size | {"num_attention_heads": 4, "max_position_embeddings": 512}
    usual = opt | {"intermediate_size": 64}
    grouped = usual | {"num_key_value_heads": 2}
    gemma = grouped | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
    gemma |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    return {
        "gpt2": t.GPT2Config(n_positions=512, n_embd=32, n_layer=4, n_head=4, **vocabulary),
        "neox": t.GPTNeoXConfig(**usual),
        "opt": t.OPTConfig(**opt, ffn_dim=64, word_embed_proj_dim=32),
        "llama": t.LlamaConfig(**grouped),
        "mistral": t.MistralConfig(**grouped, sliding_window=None),
        "qwen3": t.Qwen3Config(**grouped, head_dim=16),
        "gemma2": t.Gemma2Config(**gemma),
        "gemma3": t.Gemma3TextConfig(**gemma),
        "phi": t.PhiConfig(**usual),
        "mamba": t.MambaConfig(**size, state_size=8),
        "mamba2": t.Mamba2Config(**size, state_size=8, num_heads=4, head_dim=16, n_groups=1),
    }


ARCHITECTURES = tuple(configurations({}))


def save_model(architecture: str, folder: Path) -> Path:
    """A random model of this architecture and its tokenizer, as safetensors."""
    tokenizer = word_tokenizer()
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = configurations({"vocab_size": len(tokenizer), **ids})[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "A_log" not in name:
                    parameter.normal_(std=0.2)
    model.save_pretrained(folder / architecture)
    tokenizer.save_pretrained(folder / architecture)
    return folder / architecture


# Those whose attention the adapters know; for the others the chapter asks for adapters.
WITH_ADAPTERS = ("llama", "mistral", "qwen3", "gemma3")
# A run may be refused for these reasons only.
REFUSED = {
    ("gemma2", "attn_logit_softcapping"),
    ("opt", "an MLP that is a module of its own"),
    ("phi", "ln1, attn, ln2 and mlp"),
    ("mamba", "no attention heads"),
    ("mamba2", "no attention heads"),
    *((name, "make it with: replib train") for name in ARCHITECTURES if name not in WITH_ADAPTERS),
}


def train_adapters(project: Path, model: Path) -> None:
    """Adapters as `replib train` makes them, from a handful of rows; what they learn is nothing."""
    settings = {"rows": 16, "batch": 8, "validation_rows": 8, "foils": 2, "validate_every": 1}

    def known(tokenizer, greedily, split, most):
        return readable(tokenizer, relations()["capital"])[list(SPLITS).index(split) :: 3][:most]

    with (
        mock.patch.object(finetuning, "known_facts", known),
        mock.patch.dict(finetuning.SETTINGS, settings),
    ):
        for form in INTENT_FORMATS:
            finetuning.train_adapter(project, str(model), form, 1)


def run(paper: str, architecture: str, folder: Path) -> tuple[int, str]:
    """One chapter on one architecture, through the command line: how it ended, and the outcomes'
    counts or why it was refused."""
    out = folder / "out"
    model = str(folder / "models" / architecture)
    process = run_chapter(paper, model, SMALL[paper], out, cwd=folder / "project")
    if process.returncode == 0:
        record = next((out / paper).glob(f"{architecture}*/record.json"))
        assert len(read_record(record)["claims"]) > 0
        return 0, re.sub(r".*: (.*); \d+ s; .*", r"\1", process.stdout.strip())
    return process.returncode, "\n".join(lines(process.stderr))


def is_sound(architecture: str, code: int, text: str) -> bool:
    """Is it completed, or refused in one line for a known reason?"""
    is_refused = code == 2 and text.startswith("replib: ") and "\n" not in text
    is_known = any(name == architecture and why in text for name, why in REFUSED)
    return code == 0 or (is_refused and is_known)


def run_all(
    pairs: list[tuple[str, str]], folder: Path, at_once: int = 2
) -> dict[tuple[str, str], tuple[int, str]]:
    """All runs, some at once, in a project with these chapters and with adapters of its own."""
    project = folder / "project"
    ignored = shutil.ignore_patterns("adapters")
    shutil.copytree(ROOT / "notebooks", project / "notebooks", ignore=ignored)
    for architecture in dict.fromkeys(architecture for _, architecture in pairs):
        model = save_model(architecture, folder / "models")
        if architecture in WITH_ADAPTERS and ("context-knob", architecture) in pairs:
            train_adapters(project, model)
    with ThreadPoolExecutor(at_once) as pool:
        ends = pool.map(lambda pair: run(*pair, folder), pairs)
        return dict(zip(pairs, ends, strict=True))


# Every architecture and every chapter, completed where it can be, and each kind of refusal.
PAIRWISE = [
    *(("ioi-circuit-reuse", name) for name in ("gpt2", "mistral", "mamba")),
    *(("factual-recall", name) for name in ("neox", "gemma2", "mamba2")),
    *(("successor-heads", name) for name in ("llama", "gemma3", "mamba2")),
    *(("context-knob", name) for name in ("qwen3", "mamba")),
    *(("copying-pretrained", name) for name in ("opt", "phi", "mamba2")),
]


def main() -> int:
    papers = [paper for paper in list_papers(ROOT) if not networks_of(paper)]
    pairs = [(paper, name) for paper in papers for name in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        ends = run_all(pairs, Path(folder), os.cpu_count() or 1)
    faults = 0
    for (paper, name), (code, text) in ends.items():
        word = "refused" if code else "completed"
        if not is_sound(name, code, text):
            word, faults = f"FAULT ({code})", faults + 1
        print(f"{paper:<18} {name:<8} {word:<9} {text.removeprefix('replib: ')}")
    print(f"{len(ends)} runs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
