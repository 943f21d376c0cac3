"""Fine-tune a model to follow the intent of a prompt: LoRA on the attention matrices.

As in Minder et al. (2411.07404, Sec. 4; released code): 2,048 rows, one epoch, AdamW, loss on the
answer only. Unlike there, the rank is 8 and not 64, which keeps an adapter at 2 MB, and the
learning rate 1e-3 and not 2e-4: of the two it had the lower loss on the validation relation, which
no training row is about (0.08 against 0.26 nats; smollm2-135m, instruction format, seed 0).
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from replib.chapters.context_knob.intents import (
    FORMATS,
    draw_cases,
    known_facts,
    long_enough,
    training_rows,
)
from replib.chapters.context_knob.stored import CARD, CONFIG, WEIGHTS, adapter_folder, code_sha256
from replib.errors import UsageError
from replib.files import replacing, sha256_file
from replib.interventions.generation import continuations, one_readout
from replib.models.bridge import model_info
from replib.models.load import load_bare, load_model

SETTINGS = {
    "rows": 2048,
    "most_facts": 250,  # of each relation are asked about
    "foils": 8,  # contradicting answers for each known fact
    "rank": 8,
    "alpha": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "weight_decay": 0.01,
    "batch": 16,
    "validation_rows": 64,
    "validate_every": 32,  # steps
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
_IGNORED = -100  # label of a token that is not part of the answer


def train_adapter(
    root: Path,
    model_name: str,
    intent_format: str,
    seed: int,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train one adapter from nothing and store it; returns its folder. With one seed, on the
    processor of one machine, all bits are the same each time. An earlier adapter is replaced only
    once the new one is complete. Raises UsageError for an unknown format or model, a model without
    the matrices `TARGETS`, or one that knows no fact to train on."""
    if intent_format not in FORMATS:
        raise UsageError(f"intent format {intent_format!r}: choose one of: {', '.join(FORMATS)}")
    started = time.monotonic()
    tokenizer, rows, validation, sha256, dtype = _make_rows(model_name, intent_format, seed, device)
    if tokenizer.eos_token_id is None:
        problem = "its tokenizer has no end of text with a row in the embedding"
        raise UsageError(f"model {model_name!r}: {problem}, and each answer is trained to end")
    data = json.dumps([rows, validation], ensure_ascii=False)
    say(f"{len(rows)} rows, {len(validation)} of another relation to validate on, {dtype}")
    network, _ = load_bare(model_name, dtype=dtype, device=device)
    weights, config, curve = _train(network, tokenizer, rows, validation, seed, say)
    card = {
        "model": model_name,
        "model_sha256": sha256,
        "intent_format": intent_format,
        "seed": seed,
        "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
        "code_sha256": code_sha256(),
        "settings": SETTINGS,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "wall_time_s": round(time.monotonic() - started),
        "curve": curve,
    }
    folder = adapter_folder(root, model_name, intent_format, seed)
    with replacing(folder) as temp:
        save_file(weights, temp / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(temp)
        settings = json.loads((temp / CONFIG).read_text())
        settings["target_modules"] = sorted(settings["target_modules"])  # peft keeps a set
        (temp / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        card = {"sha256": sha256_file(temp / WEIGHTS)} | card
        (temp / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return folder


def _make_rows(
    model_name: str, intent_format: str, seed: int, device: str
) -> tuple[PreTrainedTokenizerBase, list[tuple[str, str]], list[tuple[str, str]], str, str]:
    """Tokenizer, training rows, validation rows, the model's hash and the dtype it is trained in.
    Only facts that the model knows are trained on: with others it would learn to make things up."""
    model = load_model(model_name, dtype="auto", device=device)
    tokenizer = model.tokenizer

    def greedily(prompts: list[str], answers: list[str]) -> list[str]:
        return continuations(
            model, prompts, 8, settled=lambda i, text: long_enough(text, answers[i])
        )

    rows = {}
    for split, n in (("train", SETTINGS["rows"]), ("validation", SETTINGS["validation_rows"])):
        known = known_facts(tokenizer, greedily, split, SETTINGS["most_facts"])
        cases = draw_cases(tokenizer, known, SETTINGS["foils"], seed)
        rows[split] = training_rows(tokenizer, cases, intent_format, n, seed)
    info = model_info(model)
    return tokenizer, rows["train"], rows["validation"], info.sha256, info.dtype


def _train(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, str]],
    validation: Sequence[tuple[str, str]],
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], object, dict[str, list]]:
    """One pass over the rows. Returns weights (bfloat16), peft's configuration, and the curve."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    names = {name.rsplit(".", 1)[-1] for name, _ in network.named_modules()}
    if not set(TARGETS) <= names:
        raise UsageError(
            f"training: the model has no {', '.join(sorted(set(TARGETS) - names))}; models whose "
            f"attention is made of {', '.join(TARGETS)} can be trained (Llama, Mistral, Gemma, ...)"
        )
    config = LoraConfig(
        r=SETTINGS["rank"],
        lora_alpha=SETTINGS["alpha"],
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    batches = [rows[i : i + SETTINGS["batch"]] for i in range(0, len(rows), SETTINGS["batch"])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws A from the global generator
        tuned = get_peft_model(network, config)
    tuned.train()
    learnt = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learnt, lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"]
    )
    schedule = get_linear_schedule_with_warmup(optimizer, SETTINGS["warmup_steps"], len(batches))
    curve: dict[str, list] = {"loss": [], "validation": []}  # nats a token; [step, nats a token]

    def validate(step: int) -> None:
        size = SETTINGS["batch"]
        with torch.no_grad():
            parts = [
                _loss(tuned, tokenizer, validation[i : i + size])
                for i in range(0, len(validation), size)
            ]
        curve["validation"].append([step, round(float(torch.stack(parts).mean()), 4)])
        say(f"step {step} of {len(batches)}: validation loss {curve['validation'][-1][1]:.3f}")

    with one_readout(network):
        for step, batch in enumerate(batches):
            if step % SETTINGS["validate_every"] == 0:
                validate(step)
            loss = _loss(tuned, tokenizer, batch)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            curve["loss"].append(round(loss.item(), 4))
        validate(len(batches))
    weights = get_peft_model_state_dict(tuned)
    config.base_model_name_or_path = None  # a path of this machine
    return {k: v.detach().bfloat16().contiguous() for k, v in weights.items()}, config, curve


def _loss(
    network: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, str]]
) -> Tensor:
    """Mean loss, in nats, of the answers' tokens and of the end of text after them."""
    ids, n_answer = [], []
    for prompt, answer in rows:
        before = tokenizer(prompt).input_ids
        whole = [*tokenizer(f"{prompt} {answer}").input_ids, tokenizer.eos_token_id]
        ids.append(whole)
        n_answer.append(len(whole) - len(before))
    width, kept = max(map(len, ids)), max(n_answer)
    gaps = [width - len(row) for row in ids]
    tokens = torch.tensor([[0] * gap + row for gap, row in zip(gaps, ids, strict=True)])
    places = torch.arange(width) - torch.tensor(gaps)[:, None]
    labels = tokens[:, -kept:].clone()
    for row, n in enumerate(n_answer):
        labels[row, : kept - n] = _IGNORED
    device = next(network.parameters()).device
    logits = network(
        input_ids=tokens.to(device),
        attention_mask=(places >= 0).long().to(device),
        position_ids=places.clamp_min(0).to(device),
        logits_to_keep=kept + 1,
    ).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten().to(device), ignore_index=_IGNORED
    )
