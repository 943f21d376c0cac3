"""Every chapter on every architecture: `make matrix`, and a part of it in the tests.

The models are small, random, and saved in a folder with their tokenizer, as a user's would be. A
run either completes or is refused in one line; there is no third thing.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import transformers
from trust import ROOT, run_chapter

from bookkit.project import list_papers
from bookkit.records import read_record
from replib.chapters.context_knob import training as finetuning
from replib.chapters.context_knob.intents import SPLITS
from replib.chapters.context_knob.stored import INTENT_FORMATS
from replib.chapters.factual_recall.facts import relations
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
    "copying-mamba": {
        **{"live_steps": 100, "live_seeds": "[11]", "n_strings": 8, "n_items": 2},
        **{"book_lengths": "[3]", "text_lengths": "[6]"},
    },
}


def configurations(vocabulary: dict[str, int]) -> dict[str, transformers.PretrainedConfig]:
    """By architecture: 4 layers, width 32, 4 heads where there are heads."""
    t = transformers
    size = {"hidden_size": 32, "num_hidden_layers": 4, **vocabulary}
    usual = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512}
    usual |= size
    grouped = usual | {"num_key_value_heads": 2}
    gemma = grouped | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
    layers = ["sliding_attention", "full_attention"] * 2
    mamba = size | {"state_size": 8}
    opt = {k: v for k, v in usual.items() if k != "intermediate_size"}
    return {
        "gpt2": t.GPT2Config(n_positions=512, n_embd=32, n_layer=4, n_head=4, **vocabulary),
        "neox": t.GPTNeoXConfig(**usual),
        "opt": t.OPTConfig(**opt, ffn_dim=64, word_embed_proj_dim=32),
        "llama": t.LlamaConfig(**grouped),
        "mistral": t.MistralConfig(**grouped, sliding_window=None),
        "qwen3": t.Qwen3Config(**grouped, head_dim=16),
        "gemma2": t.Gemma2Config(**gemma, layer_types=layers),
        "gemma3": t.Gemma3TextConfig(**gemma, layer_types=layers),
        "phi": t.PhiConfig(**usual),
        "mamba": t.MambaConfig(**mamba),
        "mamba2": t.Mamba2Config(**mamba, num_heads=4, head_dim=16, n_groups=1),
    }


ARCHITECTURES = tuple(configurations({}))


IDS = ("bos", "eos", "pad")


def save_model(architecture: str, folder: Path) -> Path:
    """A random model of this architecture and its tokenizer, as safetensors."""
    tokenizer = word_tokenizer()
    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in IDS}
    config = configurations({"vocab_size": len(tokenizer), **ids})[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
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
    capitals = [f for f in relations()["capital"] if f.subject.isalpha() and f.answer.isalpha()]
    settings = {"rows": 16, "batch": 8, "validation_rows": 8, "foils": 2, "validate_every": 1}

    def known(tokenizer, greedily, split, most):
        unknown = tokenizer.unk_token_id
        readable = [f for f in capitals if unknown not in tokenizer(f" {f.answer}").input_ids]
        return readable[list(SPLITS).index(split) :: 3][:most]

    with (
        mock.patch.object(finetuning, "known_facts", known),
        mock.patch.dict(finetuning.SETTINGS, settings),
    ):
        for form in INTENT_FORMATS:
            finetuning.train_adapter(project, str(model), form, 1)


@dataclass(frozen=True)
class Outcome:
    """What became of one chapter on one architecture."""

    paper: str
    architecture: str
    code: int
    text: str  # the outcomes' counts, or the line of refusal
    seconds: float

    @property
    def fault(self) -> str:
        """What this says if it is neither completed nor refused in one line for a known reason."""
        is_refused = self.code == 2 and self.text.startswith("replib: ") and "\n" not in self.text
        is_known = any(name == self.architecture and why in self.text for name, why in REFUSED)
        is_sound = self.code == 0 or (is_refused and is_known)
        return "" if is_sound else f"ended with {self.code}: {self.text}"


def run(paper: str, architecture: str, folder: Path) -> Outcome:
    """One chapter on one architecture, through the command line."""
    out = folder / "out"
    model = str(folder / "models" / architecture)
    began = time.monotonic()
    process = run_chapter(paper, model, SMALL[paper], out, cwd=folder / "project")
    seconds = time.monotonic() - began
    text = process.stdout.strip()
    if process.returncode == 0:
        record = next((out / paper).glob(f"{architecture}*/record.json"))
        assert len(read_record(record)["claims"]) > 0
        text = re.sub(r".*: (.*); \d+ s; .*", r"\1", text)
    else:  # not the lines that say how far it is
        said = process.stderr.strip().splitlines()
        text = "\n".join(x for x in said if not re.search(r": cell \d+ of \d+$|parameters in", x))
    return Outcome(paper, architecture, process.returncode, text, seconds)


def run_all(pairs: list[tuple[str, str]], folder: Path, at_once: int = 2) -> list[Outcome]:
    """All runs, some at once, in a project with these chapters and with adapters of its own."""
    project = folder / "project"
    ignored = shutil.ignore_patterns("adapters")
    shutil.copytree(ROOT / "notebooks", project / "notebooks", ignore=ignored)
    for architecture in dict.fromkeys(architecture for _, architecture in pairs):
        model = save_model(architecture, folder / "models")
        if architecture in WITH_ADAPTERS and ("context-knob", architecture) in pairs:
            train_adapters(project, model)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda pair: run(*pair, folder), pairs))


# Every architecture and every chapter, completed where it can be, and each kind of refusal.
PAIRWISE = [
    *(("ioi-circuit-reuse", name) for name in ("gpt2", "mistral", "mamba")),
    *(("factual-recall", name) for name in ("neox", "gemma2", "mamba2")),
    *(("successor-heads", name) for name in ("llama", "gemma3", "mamba2")),
    *(("context-knob", name) for name in ("qwen3", "mamba")),
    *(("copying-mamba", name) for name in ("opt", "phi", "mamba2")),
]


def main() -> int:
    pairs = [(paper, name) for paper in list_papers(ROOT) for name in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_all(pairs, Path(folder), os.cpu_count() or 1)
    for o in outcomes:
        word = "FAULT" if o.fault else "refused" if o.code else "completed"
        text = o.fault or o.text.removeprefix("replib: ")
        print(f"{o.paper:<18} {o.architecture:<8} {word:<9} {o.seconds:4.0f} s  {text}")
    faults = sum(bool(o.fault) for o in outcomes)
    print(f"{len(outcomes)} runs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
