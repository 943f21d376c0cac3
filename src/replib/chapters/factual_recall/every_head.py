"""Every head of the model taken out alone, at the last token: which heads decide between memory and
the context, whatever attribution says of them.

The heads that are scaled in claims 3.5 and 3.6 are chosen by this on the selection split, and
judged on the report split against the strongest of all heads.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from replib.interventions.head_edits import read, zero_ablate
from replib.interventions.network import Head, Network
from replib.metrics import max_statistic_pvalues, rng
from replib.prompts.pairs import PromptPairs


def one_each(pairs: PromptPairs) -> PromptPairs:
    """The first prompt of each group."""
    return pairs[[pairs.group.index(group) for group in dict.fromkeys(pairs.group)]]


def taken_out(net: Network, pairs: PromptPairs) -> Float[Tensor, "layer head group"]:
    """How far the logits of the two answers move towards the in-context one when a head writes
    nothing at END, for every head alone, on the first prompt of each group. Positive: the head
    speaks for memory, in whatever way. A layer at a time: what lies below it is not computed
    again."""
    pairs = one_each(pairs)
    plain = read(net, pairs).logit_diff[0]  # memorised − in-context
    layers = []
    for layer in range(net.n_layers):
        edits = [zero_ablate([(layer, head)]) for head in range(net.n_heads)]
        layers.append(plain - read(net, pairs, edits).logit_diff)
    return torch.stack(layers)


def pvalue(moved: Float[Tensor, "layer head group"], head: Head, seed: int) -> float:
    """How often chance makes the strongest of all heads as strong as this one: the labels memorised
    and in-context are swapped for whole groups (`metrics.max_statistic_pvalues`)."""
    return float(max_statistic_pvalues(moved, rng(seed, "every head"))[head])
