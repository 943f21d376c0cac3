"""The tasks beside IOI: unrelated ones as controls, and the variant of Colored Objects that a model
can do. The paper (2310.08744) left GPT-2 small out because it cannot do the task."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib import metrics
from replib.errors import UsageError
from replib.interventions.head_edits import Readout, read
from replib.interventions.network import Network
from replib.interventions.path_patching import path_patch
from replib.metrics import Estimate, rng
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
    find: PromptPairs  # for choosing the variant, and for finding heads
    report: PromptPairs  # for reporting, and for every edit
    more: PromptPairs | None  # for reporting what the model does in all

    @property
    def name(self) -> str:
        """As a figure writes it."""
        return f"{self.n_objects} objects,\n{self.n_shots} shot{'s' * (self.n_shots != 1)}"

    @property
    def sets(self) -> list[PromptPairs]:
        """All prompts of the report: those that are edited, then the others."""
        return [self.report] if self.more is None else [self.report, self.more]


@dataclass(frozen=True)
class Unedited:
    """What a model says to the report of a variant before any edit."""

    before: Readout  # on `variant.report`, attention and direct effects included
    gap: Estimate  # in logit difference: how far the question decides the answer, on the same
    # Of all prompts of the report, in the order of `Variant.sets`:
    listed: Bool[Tensor, " prompt"]  # has the right colour the highest logit of those listed?
    top1: Bool[Tensor, " prompt"]  # of all tokens?
    listed_top1: Bool[Tensor, " prompt"]  # has a listed colour the highest of all?

    def right_before(self, variant: Variant) -> list[PromptPairs]:
        """The prompts that were right (`top1`), of each set of the variant that has any."""
        was_right = self.top1.split([len(pairs) for pairs in variant.sets])
        both = zip(variant.sets, was_right, strict=True)
        return [pairs[right] for pairs, right in both if right.any()]


def variants(
    tokenizer: PreTrainedTokenizerBase,
    n_find: int,
    n_report: int,
    n_edit: int,
    seed: int,
    own: str = "",
) -> Iterator[Variant]:
    """The variants in order, each made when it is asked for; of a reader's `own` file only that.
    `n_edit` of the `n_report` prompts are edited."""
    if own:
        yield own_prompts(tokenizer, own, n_find, n_report, n_edit)
        return
    for shape in SHAPES:
        total = n_find + max(n_report, n_edit)
        pairs = colored_objects_pairs(tokenizer, total, seed, *shape)
        find, rest = pairs[:n_find], pairs[n_find:]
        more = rest[n_edit:] if n_report > n_edit else None
        yield Variant(*shape, find, rest[:n_edit], more)


def own_prompts(
    tokenizer: PreTrainedTokenizerBase, path: str, n_find: int, n_report: int, n_edit: int
) -> Variant:
    """A reader's own prompts as the only variant, as many as are used of the chapter's own: with
    fewer, a third finds heads and the others are for the report."""
    pairs = colored_objects_from_file(tokenizer, path)
    if len(pairs) < 12:
        few = f"{path} has {len(pairs)} prompts that this tokenizer can use"
        raise UsageError(f"{few}; give 12 or more: a third find heads, the others report them")
    n_objects = pairs.candidates.shape[1]
    n_shots = pairs.text[0].count("\nA:") - 1
    n = min(n_find, len(pairs) // 3)
    rest = pairs[n : n + max(n_report, n_edit)]
    more = rest[n_edit:] if len(rest) > n_edit else None
    return Variant(n_objects, n_shots, pairs[:n], rest[:n_edit], more)


def gap(net: Network, pairs: PromptPairs, seed: int) -> Estimate:
    """By how much the logit difference of the clean prompts is above that of the corrupted ones:
    what path patching divides by, and can do nothing without."""
    # A patch of one head runs both prompts, and the corrupted one only from where it differs.
    patch = path_patch(net, pairs, "logits", senders=[(net.n_layers - 1, 0)])
    draws = rng(seed, "gap", pairs.task)
    return metrics.bootstrap(patch.clean - patch.corrupted, pairs.group, draws)


def first_workable(
    net: Network, variants: Iterable[Variant], seed: int
) -> tuple[Variant, dict[str, Estimate]]:
    """The first variant in which the question decides the answer: whose gap in logit difference has
    its 95% interval above 0 on the prompts that find heads. The paper's, the first, if there is
    none. And the gap of each variant tried, by name."""
    tried: dict[str, Estimate] = {}
    first: Variant | None = None
    for variant in variants:
        first = first or variant
        tried[variant.name] = gap(net, variant.find, seed)
        if tried[variant.name].low > 0:
            return variant, tried
    return first, tried


def read_unedited(net: Network, variant: Variant, seed: int) -> Unedited:
    """Run the report of a variant, and keep of the prompts to edit all that is used later."""
    # `more` comes first: what is kept of so many prompts would crowd out the keys and values of
    # `report`, which the edits use again.
    more = [read(net, pairs, full_vocabulary=True) for pairs in variant.sets[1:]]
    before = read(net, variant.report, full_vocabulary=True, capture=True)
    parts = [before, *more]
    said = [part.top1[0] for part in parts]
    tokens = [pairs.candidates for pairs in variant.sets]
    pairs = list(zip(said, tokens, strict=True))
    return Unedited(
        before,
        gap(net, variant.report, seed),
        listed=torch.cat([prefers_answer(part)[0] for part in parts]),
        top1=torch.cat([top == listed[:, 0] for top, listed in pairs]),
        listed_top1=torch.cat([(top[:, None] == listed).any(-1) for top, listed in pairs]),
    )


def prefers_answer(said: Readout) -> Bool[Tensor, "edit prompt"]:
    """Has the answer the highest logit of the candidates (or of answer and foil)?"""
    return said.logits.argmax(-1) == 0


def accuracies(net: Network, tasks: Mapping[str, PromptPairs]) -> dict[str, Estimate]:
    """The share of each task's prompts on which the answer has a higher logit than the foil."""
    said = {name: read(net, pairs).logit_diff[0] for name, pairs in tasks.items()}
    return {name: metrics.proportion(logit_diff > 0) for name, logit_diff in said.items()}


def done(
    net: Network, tasks: Mapping[str, PromptPairs], accuracy: Mapping[str, Estimate], seed: int
) -> dict[str, PromptPairs]:
    """The unrelated tasks that the model does: above one half, and by what the prompt says (a gap
    in logit difference, both at 95%)."""
    return {
        name: pairs
        for name, pairs in tasks.items()
        if accuracy[name].low > 0.5 and gap(net, pairs, seed).low > 0
    }


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


def numbers_of(variant: Variant, tried: Mapping[str, Estimate]) -> dict[str, Estimate | int]:
    """What the record says of the variant that was chosen, by key."""
    return {
        "cobj_objects": variant.n_objects,
        "cobj_shots": variant.n_shots,
        "cobj_variants_tried": len(tried),
        "cobj_rows_dropped": variant.find.dropped.get("rows", 0),
        "cobj_first": next(iter(tried.values())),
    }
