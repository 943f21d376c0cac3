"""The page on attention: names said twice, where heads look in them, and the QK and OV circuits.

Axes: `seq` the sequences, `dest` and `src` positions that look and are looked at, `look` single
looks of the kind that a head is tested for, `name` the names whose circuits are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.figures import Picture
from replib.interventions.head_edits import frozen_norm
from replib.interventions.network import Head, Network, activations
from replib.metrics import Estimate, Null, bootstrap
from replib.prompts.tokens import need, single_tokens
from replib.prompts.words import NAMES

SHORTEST, LONGEST = 8, 14  # names in a block


@dataclass(frozen=True)
class Looks:
    """Where a kind of head has to look: in sequence `seq`, from `dest` to `src`, which is one of
    the places `first` to `last`, those that chance may take as well."""

    seq: Int[Tensor, " look"]
    dest: Int[Tensor, " look"]
    src: Int[Tensor, " look"]
    first: Int[Tensor, " look"]
    last: Int[Tensor, " look"]


@dataclass(frozen=True)
class RepeatedNames:
    """Sequences of one length: a block of names in random order, said again and again. Blocks are
    of different lengths, so that a head that looks a fixed way back does not pass for one that
    looks for a name."""

    tokens: Int[Tensor, "seq pos"]
    text: tuple[str, ...]
    length: Int[Tensor, " seq"]  # names in a block
    start: int  # where the first name stands: 0, or after what the tokenizer puts in front

    def halves(self) -> tuple[Int[Tensor, " seq"], Int[Tensor, " seq"]]:
        """Sequences to choose a head on, and to report it on."""
        each = torch.arange(len(self.tokens))
        return each[::2], each[1::2]

    def after_same(self, seqs: Int[Tensor, " seq"]) -> Looks:
        """From the names of the second block to what followed them in the first: all but the last
        name, and the first, whose first mention is where heads rest."""
        rows = []
        for seq in seqs.tolist():
            n = int(self.length[seq])
            first, last = self.start + 2, self.start + n - 1
            rows += [(seq, src - 1 + n, src, first, last) for src in range(first, last + 1)]
        return Looks(*torch.tensor(rows).T)

    def just_before(self, seqs: Int[Tensor, " seq"]) -> Looks:
        """From every name but the first to the token before it."""
        dests = range(self.start + 1, self.tokens.shape[1])
        rows = [(seq, dest, dest - 1, 0, dest - 1) for seq in seqs.tolist() for dest in dests]
        return Looks(*torch.tensor(rows).T)

    def distances(self) -> list[int]:
        """How far back the looks of `after_same` go: a block less one."""
        return sorted({int(n) - 1 for n in self.length})


def repeated_names(
    tokenizer: PreTrainedTokenizerBase, n_sequences: int, seed: int
) -> RepeatedNames:
    """Sequences of names that are one token each. UsageError if the tokenizer has too few."""
    known = single_tokens(tokenizer, NAMES)
    need("repeated names", names=(known, LONGEST + 1))
    names, generator = list(known), torch.Generator().manual_seed(seed)
    front = tokenizer(f" {names[0]}").input_ids[:-1]
    rows, text, length = [], [], []
    for _ in range(n_sequences):
        n = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        block = [names[i] for i in torch.randperm(len(names), generator=generator)[:n]]
        said = [block[i % n] for i in range(2 * LONGEST)]
        rows.append([*front, *(known[name] for name in said)])
        text.append(" ".join(said))
        length.append(n)
    return RepeatedNames(torch.tensor(rows), tuple(text), torch.tensor(length), len(front))


@dataclass(frozen=True)
class MovedName:
    """One block of names for each place of one of them, the order of the others being the same.
    Then all others are said again, and last the name that moves."""

    tokens: Int[Tensor, "frame pos"]
    words: tuple[tuple[str, ...], ...]
    place: Int[Tensor, " frame"]  # where the name stands the first time
    end: int  # of the block


def moved_name(tokenizer: PreTrainedTokenizerBase, seed: int, n_others: int = 9) -> MovedName:
    """The first and the last name of the block do not move: heads rest on the first token, and
    what follows the last is said again."""
    known = single_tokens(tokenizer, NAMES)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(known), generator=generator)[: n_others + 1].tolist()
    moved, *others = (list(known)[i] for i in drawn)
    front = tokenizer(f" {others[0]}").input_ids[:-1]
    before = tokenizer.convert_ids_to_tokens(front)
    places = range(1, n_others)
    said = [[*others[:at], moved, *others[at:], *others, moved] for at in places]
    rows = [[*front, *(known[name] for name in words)] for words in said]
    place = torch.tensor(places) + len(front)
    texts = tuple((*before, *words) for words in said)
    return MovedName(torch.tensor(rows), texts, place, len(front) + n_others + 1)


@dataclass(frozen=True)
class Run:
    """What is kept of one pass over some sequences: all else would not fit the memory."""

    pattern: Float[Tensor, "seq layer head dest src"]
    stream: tuple[Float[Tensor, "seq pos d_model"], ...]  # before each layer
    z: tuple[Float[Tensor, "seq pos head d_head"], ...]


def run(net: Network, tokens: Int[Tensor, "seq pos"]) -> Run:
    ends = ("hook_in", "attn.o.hook_in", "attn.hook_pattern")
    names = [[f"blocks.{layer}.{end}" for layer in range(net.n_layers)] for end in ends]
    wanted = {name for some in names for name in some}
    seen = activations(net.model, tokens, lambda name: name in wanted)
    stream, z, pattern = ([seen[name] for name in some] for some in names)
    z = [block.heads_of(x.flatten(2)) for block, x in zip(net.blocks, z, strict=True)]
    pattern = torch.stack([x.float().cpu() for x in pattern], 1)
    return Run(pattern, tuple(stream), tuple(z))


# --- Where heads look ----------------------------------------------------------------------------


def attention_to(
    pattern: Float[Tensor, "seq layer head dest src"], looks: Looks
) -> Float[Tensor, "some layer head"]:
    """Attention of each head that goes where it has to, mean over the looks of a sequence."""
    each = pattern[looks.seq, :, :, looks.dest, looks.src]  # look layer head
    seqs, row = looks.seq.unique(return_inverse=True)
    total = each.new_zeros(len(seqs), *each.shape[1:]).index_add(0, row, each)
    return total / row.bincount()[:, None, None]


def best_by_chance(
    pattern: Float[Tensor, "seq layer head dest src"],
    looks: Looks,
    generator: np.random.Generator,
    draws: int,
) -> Null:
    """The maximum statistic: `attention_to`, mean over sequences, of the best of all heads when
    each look goes to a place drawn evenly from `first` to `last`."""
    each = pattern[looks.seq, :, :, looks.dest]  # look src layer head
    look, best = torch.arange(len(looks.seq)), []
    _, row = looks.seq.unique(return_inverse=True)
    weight = 1 / row.bincount()[row].to(each)  # of a look, in the mean of its sequence
    for _ in range(draws):
        src = torch.from_numpy(generator.integers(looks.first.numpy(), looks.last.numpy() + 1))
        mean = torch.einsum("l,ljh->jh", weight, each[look, :, :, src]) / weight.sum()
        best.append(float(mean.max()))
    return Null(np.array(best))


def look_and_chance(
    pattern: Float[Tensor, "seq layer head dest src"],
    looks: Looks,
    head: Head,
    generator: np.random.Generator,
    draws: int,
) -> Mapping[str, Estimate | Null]:
    """What the claims about where a head looks are given: its attention, with an interval over
    sequences, and what the best head does by chance."""
    found = attention_to(pattern, looks)[:, *head].double().round(decimals=5)  # rounding errors
    estimate = bootstrap(found, range(len(found)), generator)
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)  # attention is a share
    held_out = Estimate(estimate.value, low, high, estimate.n)
    return {"value": held_out, "null": best_by_chance(pattern, looks, generator, draws)}


def above_null(value: Estimate, null: Null) -> float:
    """How far the interval lies above the null's 95th percentile: a head was found if this is more
    than 0."""
    return value.low - null.asdict()["q95"]


# --- The QK circuit ------------------------------------------------------------------------------


def _queries(net: Network, head: Head, x: Tensor, at: Int[Tensor, "*b pos"]) -> Tensor:
    """A head's queries [*b pos d_head], turned to the positions `at` and scaled."""
    layer, h = head
    block = net.blocks[layer]
    q = block.heads_of(block.q(block.ln1(x)))
    q = q if block.q_norm is None else block.q_norm(q)
    tokens = at.new_zeros(1, int(at.max()) + 1)  # angles depend on positions alone
    return net.geometry(tokens).rotate(q, layer, at)[..., h, :] * block.scale


def _head_write(net: Network, head: Head, x: Float[Tensor, "name d_model"]) -> Tensor:
    """What a head would write that attends to a token with the stream x alone: [name d_model]."""
    layer, h = head
    block = net.blocks[layer]
    v = block.heads_of(block.v(block.ln1(x)))
    group = block.n_heads // v.shape[-2]  # heads that share a value
    return block.write(v[..., h // group, :] @ block.W_O[h])


def key_reader(
    net: Network, seen: Run, head: Head, looks: Looks, tokens: Int[Tensor, "seq pos"]
) -> Callable[[Float[Tensor, "seq pos d_model"]], Float[Tensor, " some"]]:
    """How much a part of the stream before a layer, read as keys by `head`, raises the score of the
    right place: a function of the part, one number a sequence.

    The score is that before the softmax, from `dest` to `src`, less its mean over the places
    `first` to `last`. Keys are linear in the stream once the norm's scale (and that of the keys'
    own norm) is held at what it was in this run, so the numbers of all parts add up.
    """
    layer, h = head
    block, geometry = net.blocks[layer], net.geometry(tokens)
    x = seen.stream[layer]
    at = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    q = _queries(net, head, x, at)
    norm = frozen_norm(block.ln1, x)
    raw = block.heads_of(block.k(block.ln1(x)))
    own = h // (block.n_heads // raw.shape[-2])  # the key that this head reads with
    key_norm = None if block.k_norm is None else frozen_norm(block.k_norm, raw[..., own, :])
    bias = block.k(torch.zeros_like(x[:1, :1]))
    _, row = looks.seq.unique(return_inverse=True)
    place = torch.arange(x.shape[1])
    may = (place >= looks.first[:, None]) & (place <= looks.last[:, None])  # look src
    mean = may.double() / may.sum(-1, keepdim=True)
    ask = ((place == looks.src[:, None]).double() - mean).to(x)

    def raised(part: Float[Tensor, "seq pos d_model"]) -> Float[Tensor, " some"]:
        k = block.heads_of(block.k(norm(part).to(x)) - bias)[..., own, :]
        k = k if key_norm is None else key_norm(k)
        k = geometry.rotate(k.unsqueeze(-2), layer, at)[..., 0, :]
        score = torch.einsum("ld,lsd->ls", q[looks.seq, looks.dest], k[looks.seq])
        total = (score * ask).sum(-1).float().cpu()
        return total.new_zeros(int(row.max()) + 1).index_add(0, row, total) / row.bincount()

    return raised


def match_by_head(
    net: Network, seen: Run, head: Head, looks: Looks, tokens: Int[Tensor, "seq pos"]
) -> Float[Tensor, "some layer head"]:
    """How much what each earlier head writes raises the score that `head` gives the right place
    (`key_reader`)."""
    out = []
    with torch.inference_mode():
        raised = key_reader(net, seen, head, looks, tokens)
        for layer in range(head[0]):
            block, z = net.blocks[layer], seen.z[layer]
            writes = torch.einsum("sphd,hdm->hspm", z, block.W_O)
            if block.ln1_post is not None:
                after = frozen_norm(block.ln1_post, block.o(z.flatten(-2)))
                writes = torch.stack([after(write) for write in writes])
            out.append(torch.stack([raised(write) for write in writes], -1))
    return torch.stack(out, 1)


def mean_streams(
    seen: Run, names: RepeatedNames, layer: int
) -> tuple[Float[Tensor, "name d_model"], Int[Tensor, " name"]]:
    """The stream before a layer at each name, mean over all places of it in a first block but the
    very first place, on which heads rest; and the names' tokens."""
    place = torch.arange(names.tokens.shape[1])
    inside = (place > names.start) & (place < names.start + names.length[:, None])
    token, row = names.tokens[inside].unique(return_inverse=True)
    x = seen.stream[layer][inside].float()
    total = x.new_zeros(len(token), x.shape[-1]).index_add(0, row, x)
    return total / row.bincount()[:, None], token


def qk_circuit(
    net: Network,
    head: Head,
    earlier: Head,
    seen: Run,
    names: RepeatedNames,
    distances: Sequence[int],
) -> Float[Tensor, "distance name key"]:
    """Scores of `head`, for each distance: the query is that of a name, the key what `earlier`
    writes at the place after a name. With rotary positions they depend on the distance, and only
    on it; with learned ones they do not, as positions come in by the stream."""
    with torch.inference_mode():
        x, _ = mean_streams(seen, names, head[0])
        block = net.blocks[head[0]]
        read, _ = mean_streams(seen, names, earlier[0])
        after = block.ln1(_head_write(net, earlier, read.to(net.W_U)))
        k = block.heads_of(block.k(after))
        k = k if block.k_norm is None else block.k_norm(k)
        k = k[..., head[1] // (block.n_heads // k.shape[-2]), :]  # at position 0: not turned
        far = torch.tensor(distances)[:, None].expand(-1, len(x))  # distance name
        q = _queries(net, head, x.to(net.W_U).expand(len(distances), -1, -1), far)
        return torch.einsum("dnx,kx->dnk", q, k).float().cpu()


def ov_circuit(
    net: Network, head: Head, seen: Run, names: RepeatedNames
) -> Float[Tensor, "name said"]:
    """Logits of all names by what a head writes that reads one name alone."""
    with torch.inference_mode():
        x, token = mean_streams(seen, names, head[0])
        write = _head_write(net, head, x.to(net.W_U))
        return net.logits(write, token.to(net.W_U.device).expand(len(x), -1)).cpu()


def own_first(circuit: Float[Tensor, "name other"]) -> Bool[Tensor, " name"]:
    """Is a name's own entry the largest of its row?"""
    return circuit.argmax(-1) == torch.arange(len(circuit))


# --- The figures of this page --------------------------------------------------------------------


def draw_pattern(
    pattern: Float[Tensor, "dest src"], words: Sequence[str], marked: Mapping[int, int]
) -> Picture:
    """An attention pattern in grey, a row for each token that looks. `marked`: dest -> src of the
    places that are framed."""
    fig = Picture(figsize=(7, 6.2))
    ax = fig.subplots()
    image = ax.imshow(pattern.numpy(force=True), cmap="Greys", vmin=0, vmax=1)
    for dest, src in marked.items():
        for color, width in (("white", 3), ("black", 1.2)):  # seen on any grey
            ax.plot(src, dest, "s", ms=9, mfc="none", mec=color, mew=width)
    ticks = range(len(words))
    ax.set_xticks(ticks, words, rotation=90, fontsize=8)
    ax.set_yticks(ticks, words, fontsize=8)
    ax.set(xlabel="is looked at", ylabel="looks")
    fig.colorbar(image, ax=ax, label="attention", shrink=0.6)
    rows = enumerate(pattern.tolist())
    most = {dest: (max(row), row.index(max(row))) for dest, row in rows}
    said = (f"{words[d]} at {d}: {words[s]} at {s}, {p:.2f}" for d, (p, s) in most.items())
    fig.alt = "Attention pattern; each token and where it looks most. " + "; ".join(said) + "."
    return fig


def frames(
    sees: Float[Tensor, "frame src"], moved: MovedName
) -> tuple[Mapping[str, Mapping[str | tuple[str, ...], list[float]]], list[str]]:
    """For `figures.slider`: what the last token looks at in each frame, and for each step of the
    slider a label that says in words what its bars show."""
    bars: dict[str | tuple[str, ...], list[float]] = {}
    place = moved.place.tolist()
    for src in range(moved.end):
        marks = [{at: " (moves)", at + 1: " (comes after it)"}.get(src, "") for at in place]
        texts = (f"{src + 1} {words[src]}" for words in moved.words)
        bars[tuple(map("".join, zip(texts, marks, strict=True)))] = sees[:, src].tolist()
    bars["all that is said again"] = sees[:, moved.end :].sum(1).tolist()
    steps = []
    for at, words, row in zip(place, moved.words, sees.tolist(), strict=True):
        far = max(range(1, len(row)), key=row.__getitem__)
        steps.append(
            f"place {at + 1}, before {words[at + 1]}; but for the first token, most attention goes"
            f" to {words[far]} at place {far + 1}, {row[far]:.0%}"
        )
    return {f"Attention of the last token, {moved.words[0][-1]}": bars}, steps
