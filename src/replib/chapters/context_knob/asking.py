"""Cases asked under both intents, and whether the answers follow (Minder et al., 2411.07404,
Sec. 4): greedy continuations of ten tokens that start with the intent's answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pandas.io.formats.style import Styler
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.chapters.context_knob import intents, steering
from replib.chapters.context_knob.adapters import Adapter, adapted
from replib.chapters.context_knob.choosing import with_width
from replib.chapters.context_knob.intents import INTENTS, Case
from replib.chapters.context_knob.reading import BothIntents
from replib.chapters.factual_recall.facts import first_token
from replib.interventions.generation import Prefilled
from replib.metrics import Estimate, bootstrap, cluster_draws, percentiles, rng
from replib.prompts.files import comparable

N_NEW = 10  # tokens of an answer, as in the paper


@dataclass(frozen=True)
class Answers:
    """What a model made of some cases, asked under both intents."""

    right: Bool[Tensor, "intent case"]  # does the answer follow the intent?
    residual: Float[Tensor, "layer intent case d_model"]  # every layer's output, last token
    prompts: Prefilled | None = None  # read, where they are used again

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
    keep: bool = False,
) -> Answers:
    """Ask the cases under both intents. `shots` are (case, intent) shown with their answers first;
    `chat` False asks in plain text also where the tokenizer has chat turns. With `keep` the prompts
    are read at once and kept."""
    size = len(cases) if keep else 20 if shots else 80
    right, seen = [], []
    for start in range(0, len(cases), size):
        some = cases[start : start + size]
        read = BothIntents(model, prompts_of(model.tokenizer, some, intent_format, chat, shots))
        both = len(INTENTS), len(some)
        seen.append(steering.residuals(read).cpu().unflatten(1, both))
        asked = [(case, intent) for intent in INTENTS for case in some]
        right.append(_answered(read, asked).unflatten(0, both))
    return Answers(torch.cat(right, 1), torch.cat(seen, 2), read if keep else None)


def ask_each(
    model: TransformerBridge,
    adapters: Sequence[Adapter | None],
    cases: Sequence[Case],
    intent_format: str = "instruction",
) -> list[Answers]:
    """Ask all cases of the model with each of these adapters merged into it, and keep what was
    read."""
    found = []
    for adapter in adapters:
        with adapted(model, adapter):
            found.append(ask(model, cases, intent_format, keep=True))
    return found


def ask_dealt(
    model: TransformerBridge,
    adapters: Sequence[Adapter | None],
    cases: Sequence[Case],
    intent_format: str = "instruction",
) -> Answers:
    """Ask the cases dealt out to the adapters like cards, each case once."""
    parts = []
    for cards, adapter in zip(hands(len(cases), len(adapters)), adapters, strict=True):
        with adapted(model, adapter):
            parts.append(ask(model, [cases[i] for i in cards], intent_format))
    return together(parts)


def ask_shown(
    model: TransformerBridge,
    draws: Sequence[Sequence[tuple[Case, str]]],
    cases: Sequence[Case],
) -> Answers:
    """Ask the cases dealt out to the draws of demonstrations, each case once."""
    dealt = zip(hands(len(cases), len(draws)), draws, strict=True)
    return together([ask(model, [cases[i] for i in cards], shots=some) for cards, some in dealt])


def hands(n: int, players: int) -> list[list[int]]:
    """Cards 0 to n - 1, dealt out in turn; with fewer cards than players, some get the first."""
    return [list(range(i, n, players)) or [0] for i in range(players)]


def together(parts: Sequence[Answers]) -> Answers:
    """Answers to cases that had been dealt out, in the order of the cases again."""
    sizes = [part.right.shape[1] for part in parts]
    order = torch.tensor([i for cards in hands(sum(sizes), len(parts)) for i in cards]).argsort()
    right = torch.cat([part.right for part in parts], 1)[:, order]
    return Answers(right, torch.cat([part.residual for part in parts], 2)[:, :, order])


def _answered(read: Prefilled, asked: Sequence[tuple[Case, str]]) -> Bool[Tensor, " prompt"]:
    def settled(i: int, text: str) -> bool:
        return decided(text, asked[i][0].prior, asked[i][0].contextual)

    said = read.continuations(N_NEW, settled)
    pairs = zip(said, asked, strict=True)
    return torch.tensor(
        [intents.gives(text, case.answer(intent)) for text, (case, intent) in pairs]
    )


def decided(text: str, *answers: str) -> bool:
    """Can more of the text no longer change whether it gives one of the answers?"""
    said = comparable(text).strip()
    whole = said and "\ufffd" not in said  # else a letter of several tokens may be unfinished
    may_become = any(comparable(answer).startswith(said) for answer in answers)
    return bool(whole) and not may_become


@dataclass(frozen=True)
class Unstated:
    """Prompts without a line that states the intent, read."""

    cases: Sequence[Case]
    prompts: Prefilled
    tokens: Int[Tensor, "intent case"]  # first token of the answer under each intent
    states: Float[Tensor, "layer case d_model"]  # every layer's output at the last token


def without_intent(model: TransformerBridge, cases: Sequence[Case], chat: bool = True) -> Unstated:
    texts = [intents.prompt(model.tokenizer, case, None, chat=chat) for case in cases]
    read = Prefilled(model, texts)
    tokens = answer_tokens(model.tokenizer, cases)
    return Unstated(cases, read, tokens, steering.residuals(read).cpu())


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


def summary(
    found: Sequence[Answers], groups: Sequence[str], seed: int
) -> dict[str, float | Estimate]:
    """PairAcc of the fine-tuned models (mean, lowest, highest) and accuracy under either intent."""
    each = [float(one.pair.mean()) for one in found]
    accuracy = {
        f"{intent}_accuracy": share_of(over_seeds(found, intent), groups, rng(seed, "4.1", intent))
        for intent in INTENTS
    }
    mean = float(over_seeds(found).mean())
    return {"fine_tuned": mean, "lowest_seed": min(each), "highest_seed": max(each), **accuracy}


def mean_of(
    values: Float[Tensor, " case"] | Bool[Tensor, " case"],
    groups: Sequence[str],
    generator: np.random.Generator,
) -> Estimate:
    """The mean over cases and its interval over groups; of cases that all agree as `with_width`."""
    found = bootstrap(values, groups, generator)
    if len(values.unique()) == 1 and values[0] not in (-1, 0, 1):
        found = Estimate(found.value, found.value, found.value, found.n)
    return with_width(found, groups)


def share_of(
    values: Float[Tensor, " case"], groups: Sequence[str], generator: np.random.Generator
) -> Estimate:
    """`mean_of` for a share: its interval stays within 0 to 1."""
    if ((values == 0) | (values == 1)).all():
        return bootstrap(values.bool(), groups, generator)
    found = mean_of(values, groups, generator)
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.n)


def groups_of(cases: Sequence[Case]) -> list[str]:
    """What is resampled together: cases with one answer of memory, as a few serve many facts."""
    return [f"{case.relation} {case.prior}" for case in cases]


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
    """What fine-tuning gained on these sets of cases (the mean of the sets), all but the first,
    which is that of the sentences; and for the record how far FT's PairAcc on them stays behind
    that of the sentences (`gap`). Both sides of the gap are resampled, each by its own groups."""
    inside, *out = sets
    groups = [f"{name} {group}" for name in out for group in groups_of(sets[name])]
    gain = mean_of(
        mean_of_sets([after[name] - before[name] for name in out]), groups, rng(seed, "4.3")
    )
    reached, at_home = mean_of_sets([after[name] for name in out]), after[inside]
    own = groups_of(sets[inside])
    draws = cluster_draws(own, rng(seed, "4.3", "in")) @ at_home.numpy()
    draws -= cluster_draws(groups, rng(seed, "4.3", "out")) @ reached.numpy()
    low, high = percentiles(draws, min(len(set(groups)), len(set(own))))
    gap = float(at_home.mean() - reached.mean())
    between = with_width(Estimate(gap, low, high, len(at_home) + len(reached)), groups)
    numbers = {"gap": between, "in_domain": float(at_home.mean())}
    numbers["zero_shot"] = float(mean_of_sets([before[name] for name in out]).mean())
    for name in before.keys() - {inside}:  # for the record also kinds that do not count
        key = name.replace("-", "_")
        numbers |= {key: float(after[name].mean()), f"{key}_zero_shot": float(before[name].mean())}
    return gain, numbers
