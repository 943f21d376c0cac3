"""Path patching and head edits as slowly and obviously as possible: hooks and whole forward passes.

The oracle for `replib.interventions`: nothing is reused, nothing is skipped, one sender or one edit
at a time, full logits. Only for small models and few prompts.
"""

import torch

from replib.interventions.forward import Run
from replib.interventions.head_edits import HeadEdit, Site


def activations(model, tokens, *names):
    """{name: activation} for every hook whose name ends with one of `names`."""
    return run(model, tokens, [], names)[1]


def end_logit_diff(logits, pairs):
    prompt, end = torch.arange(len(pairs)), pairs.length - 1
    return logits[prompt, end, pairs.answer] - logits[prompt, end, pairs.foil]


def run(model, tokens, writes, record=()):
    """Logits of one pass with `writes`, (hook name, function) in turn, and what then passed at the
    hooks whose names end with one of `record`."""

    def write(function):
        def hook(value, hook):
            value = value.clone()
            function(value)
            return value

        return hook

    hooks = [(name, write(function)) for name, function in writes]
    with model.hooks(fwd_hooks=hooks):
        logits, cache = model.run_with_cache(
            tokens, names_filter=lambda name: name.endswith(tuple(record))
        )
    return logits, {name: value.clone() for name, value in cache.items()}


def path_patch(model, pairs, senders, receivers, component, position, freeze_mlps):
    """Logit difference [sender prompt] with the path sender → receivers patched, one at a time."""
    if position == "all":
        at = [range(int(length)) for length in pairs.length]
    else:
        at = pairs.positions[position]
        at = at[:, None] if at.ndim == 1 else at
    prompts, positions = zip(
        *[(p, int(t)) for p in range(len(pairs)) for t in at[p] if t >= 0], strict=True
    )
    here = (torch.tensor(prompts), torch.tensor(positions))
    clean = activations(model, pairs.clean, "attn.hook_z", "mlp.hook_out")
    corrupted = activations(model, pairs.corrupted, "attn.hook_z")
    runs = (model, pairs, here, clean, corrupted)
    patched = [_path_patch_one(*runs, s, receivers, component, freeze_mlps) for s in senders]
    return torch.stack(patched)


def _path_patch_one(
    model, pairs, here, clean, corrupted, sender, receivers, component, freeze_mlps
):
    def freeze(name):
        def function(value):
            value[here] = clean[name][here]
            if name == f"blocks.{sender[0]}.attn.hook_z":
                value[(*here, sender[1])] = corrupted[name][(*here, sender[1])]

        return name, function

    frozen = ("attn.hook_z", "mlp.hook_out") if freeze_mlps else ("attn.hook_z",)
    writes = [freeze(f"blocks.{i}.{name}") for i in range(model.cfg.n_layers) for name in frozen]
    if receivers == "logits":
        return end_logit_diff(run(model, pairs.clean, writes)[0], pairs)
    if receivers[0] == "resid_post":
        name = f"blocks.{receivers[1]}.hook_resid_post"
        _, recorded = run(model, pairs.clean, writes, [name])

        def replace(resid):
            resid[here] = recorded[name][here]

        return end_logit_diff(run(model, pairs.clean, [(name, replace)])[0], pairs)
    names = sorted({f"blocks.{layer}.attn.hook_{component}" for layer, _ in receivers})
    _, recorded = run(model, pairs.clean, writes, names)

    def receive(layer, head):
        name = f"blocks.{layer}.attn.hook_{component}"
        shared = model.cfg.n_heads // recorded[name].shape[2]

        def function(value):
            value[(*here, head // shared)] = recorded[name][(*here, head // shared)]

        return name, function

    if component == "q":
        writes = [receive(layer, head) for layer, head in receivers]
        return end_logit_diff(run(model, pairs.clean, writes)[0], pairs)

    # A key or value may serve several query heads, of which one alone is to see the patch: patch
    # the shared one, take the receiver's z from that run, and write only that z in the real one.
    z_writes = []
    for layer, head in sorted(receivers):
        z_name = f"blocks.{layer}.attn.hook_z"
        _, seen = run(model, pairs.clean, [*z_writes, receive(layer, head)], [z_name])

        def function(z, head=head, new=seen[z_name]):
            z[:, :, head] = new[:, :, head]

        z_writes.append((z_name, function))
    return end_logit_diff(run(model, pairs.clean, z_writes)[0], pairs)


def read(model, pairs, edit: HeadEdit, everywhere: bool):
    """Full logits at END [prompt, d_vocab] under one edit."""
    n_pos = pairs.clean.shape[1]
    end = pairs.length - 1
    dest = torch.arange(n_pos).expand(len(pairs), n_pos) if everywhere else end[:, None]
    prompt = torch.arange(len(pairs))[:, None]
    cache = activations(model, pairs.corrupted, "attn.hook_z")
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    corrupted = Run(dest, z=[cache[name][prompt, dest] for name in names])
    writes = []
    for layer, head in edit.heads:

        def function(value, layer=layer, head=head):
            site = Site((layer, head), slice(0, len(pairs)), corrupted)
            at = (prompt, head, dest) if edit.at == "pattern" else (prompt, dest, head)
            value[at] = edit.apply(value[at], site)

        writes.append((f"blocks.{layer}.attn.hook_{edit.at}", function))
    logits, _ = run(model, pairs.clean, writes)
    return logits[torch.arange(len(pairs)), end]
