"""Cases asked under both intents, and whether the answers follow (Minder et al., 2411.07404,
Sec. 4): greedy continuations of ten tokens that start with the intent's answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pandas.io.formats.style import Styler
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.chapters.context_knob import intents, steering
from replib.chapters.context_knob.adapters import Adapter, adapted
from replib.chapters.context_knob.intents import INTENTS, Case
from replib.chapters.factual_recall.facts import first_token
from replib.interventions.generation import Prefilled
from replib.metrics import Estimate, bootstrap, cluster_draws, percentiles, rng

N_NEW = 10  # tokens of an answer, as in the paper


@dataclass(frozen=True)
class Answers:
    """What a model made of some cases, asked under both intents."""

    right: Bool[Tensor, "intent case"]  # does the answer follow the intent?
    residual: Float[Tensor, "layer intent case d_model"]  # every layer's output, last token

    @property
    def pair(self) -> Float[Tensor, " case"]:
        """1 for a case that is right under both intents, else 0; the mean is PairAcc."""
        return self.right.all(0).double()


def example(tokenizer: PreTrainedTokenizerBase, case: Case) -> Styler:
    """A case's prompt under two ways to state an intent, and without one."""
    ways = {
        "follow the context (instruction)": ("context", "instruction"),
        "follow memory (weight)": ("prior", "weight"),
        "no intent": (None,),
    }
    texts = {name: intents.prompt(tokenizer, case, *how) for name, how in ways.items()}
    return table("prompt", texts)


def table(column: str, texts: Mapping[str, str]) -> Styler:
    """Texts by name, in one column, with their line breaks."""
    look = {"white-space": "pre-wrap", "text-align": "left"}
    return pd.DataFrame({column: texts}).style.set_properties(**look)


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    intent_format: str = "instruction",
    chat: bool = True,
    shots: Sequence[tuple[Case, str]] = (),
) -> list[str]:
    """The prompts of the cases, all with the context intent first, then all with memory's."""
    how = {"chat": chat, "demonstrations": shots}
    return [
        intents.prompt(tokenizer, case, intent, intent_format, **how)
        for intent in INTENTS
        for case in cases
    ]


def ask(
    model: TransformerBridge,
    cases: Sequence[Case],
    intent_format: str = "instruction",
    chat: bool = True,
    shots: Sequence[tuple[Case, str]] = (),
) -> Answers:
    """Ask the cases under both intents. `shots` are (case, intent) shown with their answers first;
    `chat` False asks in plain text also where the tokenizer has chat turns."""
    prompts = prompts_of(model.tokenizer, cases, intent_format, chat, shots)
    asked = [(case, intent) for intent in INTENTS for case in cases]
    size = 40 if shots else 160
    right, seen = [], []
    for start in range(0, len(prompts), size):
        read = Prefilled(model, prompts[start : start + size])
        seen.append(steering.residuals(read).cpu())
        right.append(_answered(read, asked[start : start + size]))
    both = (len(INTENTS), len(cases))
    return Answers(torch.cat(right).unflatten(0, both), torch.cat(seen, 1).unflatten(1, both))


def ask_each(
    model: TransformerBridge,
    adapters: Sequence[Adapter | None],
    cases: Sequence[Case],
    intent_format: str = "instruction",
) -> list[Answers]:
    """Ask the cases of the model with each of these adapters merged into it."""
    found = []
    for adapter in adapters:
        with adapted(model, adapter):
            found.append(ask(model, cases, intent_format))
    return found


def _answered(read: Prefilled, asked: Sequence[tuple[Case, str]]) -> Bool[Tensor, " prompt"]:
    def settled(i: int, text: str) -> bool:
        case, _ = asked[i]
        return intents.long_enough(text, case.prior, case.contextual)

    said = read.continuations(N_NEW, settled)
    pairs = zip(said, asked, strict=True)
    return torch.tensor(
        [intents.gives(text, case.answer(intent)) for text, (case, intent) in pairs]
    )


@dataclass(frozen=True)
class Unstated:
    """Prompts without a line that states the intent, read."""

    cases: Sequence[Case]
    prompts: Prefilled
    tokens: Int[Tensor, "intent case"]  # first token of the answer under each intent


def without_intent(model: TransformerBridge, cases: Sequence[Case], chat: bool = True) -> Unstated:
    texts = [intents.prompt(model.tokenizer, case, None, chat=chat) for case in cases]
    return Unstated(cases, Prefilled(model, texts), answer_tokens(model.tokenizer, cases))


def answered(asked: Unstated, intent: str) -> Bool[Tensor, " case"]:
    """Does the greedy continuation start with the answer that this intent would ask for?"""
    return _answered(asked.prompts, [(case, intent) for case in asked.cases])


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]
) -> Int[Tensor, "intent case"]:
    """The first token of each case's answer under each intent."""
    return torch.tensor([[first_token(tokenizer, c.answer(i)) for c in cases] for i in INTENTS])


def over_seeds(found: Sequence[Answers], intent: str | None = None) -> Float[Tensor, " case"]:
    """For each case, the share of models that are right under both intents, or under one."""
    if intent is None:
        return torch.stack([one.pair for one in found]).mean(0)
    return torch.stack([one.right[INTENTS.index(intent)].double() for one in found]).mean(0)


def summary(found: Sequence[Answers]) -> dict[str, float]:
    """PairAcc of the fine-tuned models (mean, lowest, highest) and accuracy under either intent."""
    each = [float(one.pair.mean()) for one in found]
    accuracy = {f"{i}_accuracy": float(over_seeds(found, i).mean()) for i in INTENTS}
    mean = float(over_seeds(found).mean())
    return {"fine_tuned": mean, "lowest_seed": min(each), "highest_seed": max(each), **accuracy}


def mean_of_sets(per_set: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " case"]:
    """All values of several sets of cases, weighted so that their mean is the mean of the sets'
    means: a set with more cases does not count more."""
    n = sum(map(len, per_set))
    return torch.cat([values * n / (len(per_set) * len(values)) for values in per_set])


def outside(
    sets: Mapping[str, Sequence[Case]],
    before: Mapping[str, Float[Tensor, " _"]],
    after: Mapping[str, Float[Tensor, " _"]],
    seed: int,
) -> tuple[Estimate, dict[str, float | Estimate]]:
    """What fine-tuning gained on multi-hop and arithmetic cases, the mean of the two; and for the
    record their PairAcc, and how far it stays behind that of the sentences (`gap`). Both sides of
    the gap are resampled, each by its own subjects."""
    out = {name: sets[name] for name in ("multi-hop", "arithmetic")}
    groups = [f"{name} {case.subject}" for name, cases in out.items() for case in cases]
    gain = bootstrap(
        mean_of_sets([after[name] - before[name] for name in out]), groups, rng(seed, "4.3")
    )
    reached, inside = mean_of_sets([after[name] for name in out]), after["sentence"]
    subjects = [case.subject for case in sets["sentence"]]
    draws = cluster_draws(subjects, rng(seed, "4.3", "in")) @ inside.numpy()
    draws -= cluster_draws(groups, rng(seed, "4.3", "out")) @ reached.numpy()
    low, high = percentiles(draws, min(len(set(groups)), len(set(subjects))))
    gap = float(inside.mean() - reached.mean())
    numbers = {"gap": Estimate(gap, low, high, len(inside) + len(reached))}
    for name in out:
        key = name.replace("-", "_")
        numbers[key] = float(after[name].mean())
        numbers[f"{key}_zero_shot"] = float(before[name].mean())
    return gain, numbers
