"""Indirect object identification."""

import random
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.pairs import Pair, PromptPairs, assemble, draw_pairs, fill_template
from replib.prompts.tokens import check_tokenizer, need, readable_words, single_tokens
from replib.prompts.words import IOI_TEMPLATES, NAMES, OBJECTS, PLACES


def ioi_pairs(tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0) -> PromptPairs:
    """Indirect object identification: "When A and B ..., B gave the ... to" is answered by " A".

    Half of the prompts name the indirect object first (ABBA), half second (BABA). Corrupted: S2
    is replaced by the IO name, so the other name becomes the right one (the corruption of Merullo
    et al. 2310.08744, not the three random names of Wang et al.). Answer: IO; foil: S. Names,
    places and objects that are not single tokens are dropped and counted.

    Positions, each [prompt]: "IO", "S1" (first S), "S1+1" (the token after it), "S2", "END".

    UsageError if the tokenizer has too few of the words as single tokens.
    """
    task = "ioi"
    check_tokenizer(tokenizer, task, n_prompts)
    names, places, objects = (single_tokens(tokenizer, words) for words in (NAMES, PLACES, OBJECTS))
    need(task, names=(names, 3), places=(places, 1), objects=(objects, 1))
    rng = random.Random(seed)
    first, second = list(names)[:2]
    probe = {"place": next(iter(places)), "object": next(iter(objects)), "a": first, "b": second}

    def aligned(template: str) -> bool:
        texts = [fill_template(template, probe | {"s": s})[0] for s in (first, second)]
        ids = [tokenizer(text).input_ids for text in texts]
        counts = [(row.count(names[first]), row.count(names[second])) for row in ids]
        same_length = len(ids[0]) == len(ids[1])
        return readable_words(tokenizer, texts[0]) and same_length and counts == [(2, 1), (1, 2)]

    templates = [(i, template) for i, template in enumerate(IOI_TEMPLATES) if aligned(template)]
    if not templates:
        raise UsageError(f"{task}: no template keeps its names as single tokens in this tokenizer")
    rng.shuffle(templates)

    def draw(i: int) -> Pair:
        io_name, s_name = rng.sample(list(names), 2)
        number, template = templates[i // 2 % len(templates)]
        io_first = i % 2 == 0
        words = {
            "a": io_name if io_first else s_name,
            "b": s_name if io_first else io_name,
            "place": rng.choice(list(places)),
            "object": rng.choice(list(objects)),
        }
        clean, at = fill_template(template, words | {"s": s_name})
        corrupted, _ = fill_template(template, words | {"s": io_name})
        io_at, s1_at = (at["a"], at["b"]) if io_first else (at["b"], at["a"])
        marks = {"IO": io_at, "S1": s1_at, "S1+1": s1_at, "S2": at["s"]}
        group = f"ioi-{number:02d}"
        return Pair(clean, corrupted, names[io_name], names[s_name], marks, group)

    dropped = {
        "names": len(NAMES) - len(names),
        "places": len(PLACES) - len(places),
        "objects": len(OBJECTS) - len(objects),
        "templates": len(IOI_TEMPLATES) - len(templates),
    }
    pairs = assemble(tokenizer, task, draw_pairs(task, n_prompts, draw), dropped)
    after_s1 = {"S1+1": pairs.positions["S1"] + 1}
    return replace(pairs, positions={**pairs.positions, **after_s1})
