"""Cases that a model knows: it gives the answer of memory when it is asked without a context.

Of others a wrong answer would say nothing about the intent (Minder et al., 2411.07404, whose code
has a flag for it).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.chapters.context_knob import contexts, intents
from replib.chapters.context_knob.asking import N_NEW, decided
from replib.chapters.context_knob.intents import INTENTS, SPLITS, Case
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Fact
from replib.interventions.generation import continuations
from replib.metrics import rng

FEWEST = 8  # with fewer that are known nothing is claimed


@dataclass(frozen=True)
class Known:
    """Cases to ask, and how many of them the model knows."""

    cases: list[Case]
    n: int  # all of them; or 0: fewer than `FEWEST` were known, and these need not be
    facts: Sequence[Fact] = ()  # that the cases were drawn from


def draw(model: TransformerBridge, split: str, most: int, n: int, seed: int) -> Known:
    """Up to n cases about facts of a split that the model knows, one for each fact, `in_turn`, of
    the `most` best-known subjects of each relation. A model that hardly knows any gets capitals
    instead."""
    tokenizer = model.tokenizer
    known = intents.known_facts(tokenizer, _greedily(model), split, most)
    are_known = len(known) >= FEWEST
    if not are_known:
        capitals = facts.readable(tokenizer, intents.relations("train")["capital"], 24)
        known = capitals[list(SPLITS).index(split) :: len(SPLITS)]
    cases = intents.draw_cases(tokenizer, in_turn(known), 1, seed)[:n]
    return Known(cases, len(cases) if are_known else 0, known)


def in_turn(some: Sequence[Fact]) -> list[Fact]:
    """The facts in another order: as many relations and answers as possible come first. Else a few
    answers would serve most of the cases (English is the official language of many countries)."""
    same, relation, keys = Counter(), Counter(), []
    for fact in some:
        keys.append((same[fact.relation, fact.answer], relation[fact.relation]))
        same[fact.relation, fact.answer] += 1
        relation[fact.relation] += 1
    return [some[i] for i in sorted(range(len(some)), key=lambda i: keys[i])]


def keep(model: TransformerBridge, cases: Sequence[Case], n: int) -> Known:
    """The first n of the cases that the model knows; of all cases, where it knows too few."""
    alone = [intents.prompt(model.tokenizer, case, None, context=False) for case in cases]
    said = _greedily(model)(alone, [case.prior for case in cases])
    known = [c for c, text in zip(cases, said, strict=True) if intents.gives(text, c.prior)]
    if len(known) < FEWEST:
        return Known(list(cases[:n]), 0)
    return Known(known[:n], len(known[:n]))


def variants(
    model: TransformerBridge, known: Sequence[Fact], n: int, seed: int
) -> dict[str, Known]:
    """Cases with other contexts than those trained on, up to n that the model knows; of paragraphs
    a third of that. Facts of multi-hop cases and of paragraphs are known already; of arithmetic
    twice as many cases are tried as kept."""
    tokenizer, known = model.tokenizer, in_turn(known)
    multi_hop = contexts.multi_hop_cases(tokenizer, known, seed)[:n]
    arithmetic = contexts.arithmetic_cases(2 * n, seed)
    sentences = intents.draw_cases(tokenizer, known, 1, seed)[: n // 3]
    return {
        "multi-hop": Known(multi_hop, len(multi_hop)),
        "arithmetic": keep(model, arithmetic, n),
        "paragraph": Known(contexts.paragraph_cases(sentences), len(sentences)),
    }


def from_file(model: TransformerBridge, path: str | Path, n: int) -> Known:
    """Up to n of a reader's own cases (`contexts.cases_from_file`), without those whose two answers
    begin with one token, unless all do."""
    own = contexts.cases_from_file(path, model.tokenizer, N_NEW)
    return keep(model, differing(model.tokenizer, own), n)


def _greedily(model: TransformerBridge) -> Callable[[list[str], list[str]], list[str]]:
    """A function: continuations of prompts, each as long as comparing it with its answer takes."""

    def greedily(prompts: list[str], answers: list[str]) -> list[str]:
        return continuations(
            model, prompts, N_NEW, settled=lambda i, text: decided(text, answers[i])
        )

    return greedily


def differing(tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]) -> list[Case]:
    """The cases whose two answers begin with different tokens; all, if there is none."""
    first = partial(facts.first_token, tokenizer)
    return [c for c in cases if first(c.prior) != first(c.contextual)] or list(cases)


def demonstrations(
    model: TransformerBridge, shown: Sequence[Case], asked: Sequence[Case], n: int
) -> list[tuple[Case, str]]:
    """(case, intent) to show first: n / 2 cases under both intents, or as many as the model can
    read in front of the longest case that is asked."""
    shots = [(case, intent) for case in shown[: n // 2] for intent in INTENTS]
    longest = max(asked, key=lambda case: len(case.context))
    while shots:
        text = intents.prompt(model.tokenizer, longest, "prior", demonstrations=shots)
        if len(model.tokenizer(text).input_ids) + N_NEW < model.cfg.n_ctx:
            break
        shots = shots[:-2]
    return shots


def draws_of_demonstrations(
    model: TransformerBridge, shown: Sequence[Case], asked: Sequence[Case], n: int, seed: int
) -> list[list[tuple[Case, str]]]:
    """Five draws of `demonstrations`, each of other cases in another order."""
    found = []
    for draw in range(5):
        order = rng(seed, "demonstrations", draw).permutation(len(shown))
        found.append(demonstrations(model, [shown[i] for i in order], asked, n))
    return found
