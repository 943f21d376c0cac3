"""Colored Objects."""

import itertools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.pairs import Pair, PromptPairs, assemble, draw_pairs
from replib.prompts.tokens import check_tokenizer, need, readable_words, single_token, single_tokens
from replib.prompts.words import COLORED_OBJECTS, COLORS, STARTERS, SURFACES

_QUESTION = re.compile(
    r"Q: On the (?P<surface>[^,\n]+), (?P<list>[^.?\n]+)\. "
    r"(?P<question>What color is the (?P<query>[^?\n]+)\?)\nA:(?P<answer>[^\n]*)(?:\n|$)"
)
_ITEM = re.compile(r"\ban? (?P<color>[^\s,]+) (?P<object>[^,]+?)(?=, |,? and an? |$)")


class _Question(NamedTuple):
    """One question of a Colored Objects prompt and where its parts are (character indices)."""

    group: str  # surface and starter
    colors: list[tuple[str, int]]  # each colour with the index of its last character
    objects: list[tuple[str, int]]
    queried: int  # which of the objects is asked about
    query: int  # last character of the object in "What color is the ...?"
    question: slice  # "What color is the ...?"
    answer: str


def ask(surface: str, starter: str, items: Sequence[tuple[str, str]], queried: int) -> str:
    """The question about `items` (colour, object) that asks for the colour of one of them."""
    listed = [f"{'an' if color[0] in 'aeiou' else 'a'} {color} {thing}" for color, thing in items]
    comma = "," if len(items) > 2 else ""
    things = ", ".join(listed[:-1]) + f"{comma} and {listed[-1]}"
    return f"Q: On the {surface}, {starter} {things}. What color is the {items[queried][1]}?\nA:"


def make_questions(prompt: str) -> list[_Question]:
    """The questions of a Colored Objects prompt; ValueError with the reason if it is not one."""
    found, end = [], 0
    for match in _QUESTION.finditer(prompt):
        if match.start() != end:
            break
        end, start = match.end(), match.start("list")
        items = list(_ITEM.finditer(match["list"]))
        objects = [item["object"] for item in items]
        if len(items) < 2 or len(set(objects)) < len(objects):
            raise ValueError("a question lists fewer than two objects, or one object twice")
        if match["query"] not in objects:
            raise ValueError(f"{match['query']!r} is asked about and not listed")
        question = _Question(
            group=f"{match['surface']}/{match['list'][: items[0].start()].strip()}",
            colors=[(item["color"], start + item.end("color") - 1) for item in items],
            objects=[(item["object"], start + item.end("object") - 1) for item in items],
            queried=objects.index(match["query"]),
            query=match.end("query") - 1,
            question=slice(match.start("question"), match.end("question")),
            answer=match["answer"].strip(),
        )
        found.append(question)
    if not found or end != len(prompt) or prompt.endswith("\n") or found[-1].answer:
        raise ValueError(
            "not in the form 'Q: On the S, ... a C O, a C O, and a C O. What color is the O?\\nA:'"
        )
    return found


def colored_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, other: str) -> Pair:
    """The pair whose corrupted prompt asks the last question about the object `other`. ValueError
    with the reason, if the prompt is not in the format."""
    *shots, test = make_questions(prompt)
    names = [word for word, _ in test.objects]
    colors = [word for word, _ in test.colors]
    if len(set(colors)) < len(colors):
        raise ValueError("the last question has one colour twice")
    # The queried object's column comes first, the others in the order of the list.
    order = [test.queried, *(i for i in range(len(colors)) if i != test.queried)]
    tokens = {}
    for color in colors:
        token = single_token(tokenizer, f" {color.title()}", "A:")
        if token is None or single_token(tokenizer, f" {color}") is None:
            raise ValueError(f"{color!r} or {color.title()!r} is not one token in this tokenizer")
        tokens[color] = token
    start = test.query - len(names[test.queried]) + 1
    return Pair(
        clean=prompt,
        corrupted=prompt[:start] + other + prompt[test.query + 1 :],
        answer=tokens[colors[test.queried]],
        foil=tokens[colors[names.index(other)]],
        marks={
            "colors": [test.colors[i][1] for i in order],
            "wrong_colors": [test.colors[i][1] for i in order[1:]],
            "shot_colors": [at for shot in shots for _, at in shot.colors],
            "objects": [test.objects[i][1] for i in order],
            "queried": test.objects[test.queried][1],
            "query": test.query,
            "question": test.question,
        },
        group=test.group,
        candidates=tuple(tokens[colors[i]] for i in order),
    )


def colored_objects_pairs(
    tokenizer: PreTrainedTokenizerBase,
    n_prompts: int,
    seed: int = 0,
    n_objects: int = 3,
    n_shots: int = 1,
) -> PromptPairs:
    """Colored Objects in the format of Merullo et al. (2310.08744, Sec. 4; code cobjs_data.py).

    "Q: On the table, there is a red pen, a blue cup, and a green mug. What color is the cup?\\nA:
    Blue\\nQ: ...\\nA:". The test question shares no colour and no object with the shots (between
    shots only the objects are kept apart: there are eight colours). Corrupted: another object of
    the test question is asked about. Answer and foil: the two colours, title-case with a leading
    space. With two objects the list is "a C O and a C O". Colours need both spellings as single
    tokens, objects one; the others are dropped and counted.

    Positions: "colors" [prompt, n_objects] (test question; column 0 = the right colour, then the
    order of the list), "wrong_colors" [prompt, n_objects - 1], "shot_colors" [prompt,
    n_objects * n_shots], "objects" [prompt, n_objects] (columns as in "colors"), "queried"
    [prompt] (the object asked about, in the list), "query" [prompt] (the object in "What color is
    the ...?"), "question" [prompt, k] (every token of that sentence), "END" [prompt].
    Candidates [prompt, n_objects]: the colours as answers, columns as in "colors".

    UsageError if n_objects or n_shots is out of range or too few words are single tokens.
    """
    task = "colored_objects"
    check_tokenizer(tokenizer, task, n_prompts)
    if n_objects not in (2, 3):
        raise UsageError(f"{task}: n_objects must be 2 or 3, not {n_objects}")
    if n_shots not in (1, 2, 3):
        raise UsageError(f"{task}: n_shots must be 1, 2 or 3, not {n_shots}")
    title = single_tokens(tokenizer, (color.title() for color in COLORS))
    colors = [color for color in single_tokens(tokenizer, COLORS) if color.title() in title]
    objects = list(single_tokens(tokenizer, COLORED_OBJECTS))
    n_things = n_objects * (n_shots + 1)
    need(task, colours=(colors, 2 * n_objects), objects=(objects, n_things))
    probe = list(zip(colors, objects, strict=False))
    frames = list(itertools.product(SURFACES, STARTERS))
    frames = [frame for frame in frames if readable_words(tokenizer, ask(*frame, probe, 0))]
    if not frames:
        raise UsageError(f"{task}: the tokenizer does not know the words of the format")
    rng = random.Random(seed)

    def draw(i: int) -> Pair:
        things = rng.sample(objects, n_things)
        test_colors = rng.sample(colors, n_objects)
        others = [color for color in colors if color not in test_colors]
        prompt = ""
        for shot in range(n_shots):
            shown = things[shot * n_objects : (shot + 1) * n_objects]
            items = list(zip(rng.sample(others, n_objects), shown, strict=True))
            asked = rng.randrange(n_objects)
            prompt += f"{ask(*rng.choice(frames), items, asked)} {items[asked][0].title()}\n"
        asked, tested = i % n_objects, things[-n_objects:]
        frame = frames[i // n_objects % len(frames)]
        prompt += ask(*frame, list(zip(test_colors, tested, strict=True)), asked)
        other = rng.choice([thing for thing in tested if thing != tested[asked]])
        return colored_pair(tokenizer, prompt, other)

    dropped = {
        "colors": len(COLORS) - len(colors),
        "objects": len(COLORED_OBJECTS) - len(objects),
        "templates": len(SURFACES) * len(STARTERS) - len(frames),
    }
    return assemble(tokenizer, task, draw_pairs(task, n_prompts, draw), dropped)
