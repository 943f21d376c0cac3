"""Prompts of cases under both intents. The intent is stated after the context: what the two prompts
of a case begin with alike is read once for both."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from replib.interventions.generation import Prefilled, one_readout


class BothIntents(Prefilled):
    """`Prefilled` of all cases under one intent, then the same under the other. Three parts are
    read one after the other: what all prompts begin with, what the two of a case do, and the rest;
    then keys and values are moved to where `Prefilled` has them, all padding in front."""

    def __init__(self, model: TransformerBridge, prompts: Sequence[str]):
        self.model, self.network = model, model.original_model
        self.device = next(self.network.parameters()).device
        ids = [model.tokenizer(prompt).input_ids for prompt in prompts]
        n = len(ids) // 2
        self.common = _alike(ids)
        begun = [_alike([ids[i], ids[i + n]]) for i in range(n)]
        own = [ids[i][self.common : begun[i]] for i in range(n)]
        rest = [row[begun[i % n] : -1] for i, row in enumerate(ids)]
        self.last = torch.tensor([[row[-1]] for row in ids], device=self.device)
        cache, seen = DynamicCache(), torch.ones(1, 0, dtype=torch.bool, device=self.device)
        with torch.no_grad(), one_readout(self.network):
            for rows, part in ((1, [ids[0][: self.common]]), (1, own), (n, rest)):
                copied = torch.arange(len(part), device=self.device) % rows
                cache, seen = self._read_on(cache, seen, part, copied)
        self._pack(cache, seen)

    def _read_on(
        self,
        cache: DynamicCache,
        seen: Bool[Tensor, "row key"],
        part: Sequence[Sequence[int]],
        copied: Int[Tensor, " new_row"],
    ) -> tuple[DynamicCache, Bool[Tensor, "new_row more_keys"]]:
        """Read more tokens of each row, padded in front, after the rows `copied` of the cache."""
        width = max(map(len, part))
        gap = torch.tensor([width - len(row) for row in part], device=self.device)
        here = torch.arange(width, device=self.device) >= gap[:, None]
        seen = torch.cat([seen[copied], here], 1)
        if cache.layers:
            cache.batch_select_indices(copied)
        if not width:
            return cache, seen
        places = (seen.long().cumsum(1) - 1).clamp_min(0)
        tokens = [[0] * (width - len(row)) + list(row) for row in part]
        read = self.network(
            torch.tensor(tokens, device=self.device),
            attention_mask=seen.long(),
            position_ids=places[:, -width:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return read.past_key_values, seen

    def _pack(self, cache: DynamicCache, seen: Bool[Tensor, "row key"]) -> None:
        """Put padding behind what all prompts begin with, as little as there must be."""
        order = seen.long()
        order[:, : self.common] = -1
        order = order.argsort(dim=1, stable=True)
        gap = (~seen).sum(1)
        spare = int(gap.min())
        kept = torch.cat([order[:, : self.common], order[:, self.common + spare :]], 1)
        self.gap, self.width = gap - spare, kept.shape[1]

        def moved(x: Tensor) -> Tensor:  # row head key d_head
            return x.gather(2, kept[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        self._layers = [(moved(layer.keys), moved(layer.values)) for layer in cache.layers]


def _alike(ids: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with alike, at least one besides the last left to each."""
    n = 0
    while n < min(map(len, ids)) - 2 and len({row[n] for row in ids}) == 1:
        n += 1
    return n
