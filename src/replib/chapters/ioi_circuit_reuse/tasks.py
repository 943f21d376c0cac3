"""The tasks beside IOI: unrelated ones as controls, and the variant of Colored Objects that a model
can do. The paper (2310.08744) left GPT-2 small out because it cannot do the task."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib import metrics
from replib.interventions.head_edits import Readout, read
from replib.interventions.network import Network
from replib.metrics import Estimate
from replib.prompts.capitals import capital_pairs
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.files import colored_objects_from_file, pairs_from_file
from replib.prompts.greater_than import greater_than_pairs
from replib.prompts.pairs import PromptPairs

SHAPES = ((3, 1), (2, 1), (3, 2), (2, 2), (2, 3))  # objects, solved examples; the paper's first


def unrelated(
    tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int, own: str = ""
) -> dict[str, PromptPairs]:
    """Prompts of the paper's two control tasks (App. H), by name, and of a reader's own file."""
    tasks = {
        "greater-than": greater_than_pairs(tokenizer, n_prompts, seed),
        "capitals": capital_pairs(tokenizer, n_prompts, seed),
    }
    if own:
        tasks["your prompts"] = pairs_from_file(tokenizer, own)[:n_prompts]
    return tasks


@dataclass(frozen=True)
class Variant:
    """Prompts of one variant of Colored Objects, in sets that share no prompt."""

    n_objects: int  # that a question lists; chance is one in so many
    n_shots: int  # solved examples before the question
    find: PromptPairs  # for finding heads
    choose: PromptPairs  # for choosing the variant, if it is not the paper's
    report: PromptPairs  # for reporting, and for every edit
    more: PromptPairs | None  # for reporting what the model does without an edit

    @property
    def name(self) -> str:
        """As a figure writes it."""
        return f"{self.n_objects} objects,\n{self.n_shots} shot{'s' * (self.n_shots > 1)}"


@dataclass(frozen=True)
class Unedited:
    """What a model says to the report of a variant before any edit."""

    variant: Variant
    before: Readout  # on `variant.report`, attention and direct effects included
    # On `report`, then `more`: has the right colour the highest logit of those listed, of all?
    listed: Bool[Tensor, " prompt"]
    top1: Bool[Tensor, " prompt"]


def variants(
    tokenizer: PreTrainedTokenizerBase, n_find: int, n_report: int, n_edit: int, seed: int
) -> Iterator[Variant]:
    """The variants in order, each made when it is asked for. `n_edit` of the `n_report` prompts
    are edited; half as many choose between variants."""
    n_choose = n_edit // 2
    for shape in SHAPES:
        total = n_find + n_choose + max(n_report, n_edit)
        pairs = colored_objects_pairs(tokenizer, total, seed, *shape)
        find, choose = pairs[:n_find], pairs[n_find : n_find + n_choose]
        rest = pairs[n_find + n_choose :]
        more = rest[n_edit:] if n_report > n_edit else None
        yield Variant(*shape, find, choose, rest[:n_edit], more)


def own_prompts(tokenizer: PreTrainedTokenizerBase, path: str) -> list[Variant]:
    """A reader's own prompts as the only variant: a quarter finds heads, half is for the report."""
    pairs = colored_objects_from_file(tokenizer, path)
    n = len(pairs) // 4
    return [Variant(*SHAPES[0], pairs[:n], pairs[n : 2 * n], pairs[2 * n :], more=None)]


def first_workable(
    net: Network, variants: Iterable[Variant]
) -> tuple[Unedited, dict[str, Estimate]]:
    """The first variant that the model does better than by chance (95%), the paper's if none is;
    and of each variant tried, by name, the share right among the listed colours.

    The first one is judged on all prompts of its report, the others on their `choose` prompts.
    """
    variants = iter(variants)
    paper = read_unedited(net, next(variants))
    tried = {paper.variant.name: metrics.proportion(paper.listed)}
    if tried[paper.variant.name].low > 1 / paper.variant.n_objects:
        return paper, tried
    for variant in variants:
        share = metrics.proportion(prefers_answer(read(net, variant.choose))[0])
        tried[variant.name] = share
        if share.low > 1 / variant.n_objects:
            return read_unedited(net, variant), tried
    return paper, tried


def read_unedited(net: Network, variant: Variant) -> Unedited:
    """Run the report of a variant, and keep of the prompts to edit all that is used later."""
    # `more` comes first: what is kept of so many prompts would crowd out the keys and values of
    # `report`, which the edits use again.
    more = [] if variant.more is None else [read(net, variant.more, correct=True)]
    before = read(net, variant.report, correct=True, capture=True)
    parts = [before, *more]
    listed = torch.cat([prefers_answer(part)[0] for part in parts])
    return Unedited(variant, before, listed, torch.cat([part.correct[0] for part in parts]))


def prefers_answer(said: Readout) -> Bool[Tensor, "edit prompt"]:
    """Has the answer the highest logit of the candidates (or of answer and foil)?"""
    return said.logits.argmax(-1) == 0


def accuracies(net: Network, tasks: Mapping[str, PromptPairs]) -> dict[str, Estimate]:
    """The share of each task's prompts on which the answer has a higher logit than the foil."""
    said = {name: read(net, pairs).logit_diff[0] for name, pairs in tasks.items()}
    return {name: metrics.proportion(logit_diff > 0) for name, logit_diff in said.items()}


def labelled(
    ioi: Estimate, controls: Mapping[str, Estimate], among_listed: Estimate, of_all: Estimate
) -> dict[str, Estimate]:
    """The accuracies on all tasks, with the names that a figure gives them."""
    return {
        "IOI\n(right name\nof two)": ioi,
        **{f"{name}\n(answer\nabove foil)": share for name, share in controls.items()},
        "Colored\nObjects\n(among listed)": among_listed,
        "Colored\nObjects\n(of all tokens)": of_all,
    }


def numbers_of(task: Unedited, tried: Mapping[str, Estimate]) -> dict[str, Estimate | int]:
    """What the record says of the variant that was chosen, by key."""
    return {
        "cobj_objects": task.variant.n_objects,
        "cobj_shots": task.variant.n_shots,
        "cobj_variants_tried": len(tried),
        "cobj_first": next(iter(tried.values())),
    }
