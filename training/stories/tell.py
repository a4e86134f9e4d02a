"""Stories told from the story world, what can be asked about them, and the texts of both for pretraining.

Every generator is an endless stream that depends on its split and seed alone. The splits share no combination of
hero kind, thing, place and problem, so what is measured on the test split was never told in training.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from training.stories import world

Split = Literal["train", "dev", "test"]
StoryMessage = dict[str, str]
Slots = dict[str, str]


@dataclass(frozen=True)
class Request:
    """What an instruction asks for; name and place are None where it leaves them open, the others are empty."""

    kind: str
    name: str | None
    item: str
    adjective: str
    place: str | None
    problem: str


@dataclass(frozen=True)
class Story:
    """A told story: its facts, who came to help and whether that worked, its shape, its end and its text."""

    request: Request
    helper: str
    able: bool
    happy: bool
    shape: str
    text: str


INTRODUCED, BRIEF, EXAMINED = 0.35, 0.15, 0.35  # shares of the pretraining texts
FORETOLD = 0.5  # of the stories, those that say how they will end
# Kinds of questions that an introduction and a short story answer.
INTRODUCED_KINDS = ("who", "name", "had", "place", "color")
HARD_KINDS = ("happened", "helped", "mood")
BRIEF_KINDS = ("who", "name", "had", "color", "where", "place", "happened", "mood")


# ---- facts ----


def split_of(kind: str, item: str, place: str, problem: str) -> Split:
    """Return the one split that tells of this combination: 90 in 100 train, 5 dev, 5 test."""
    digest = hashlib.sha256(f"{kind}|{item}|{place}|{problem}".encode()).digest()
    slot = int.from_bytes(digest[:8], "big") % 100
    return "train" if slot < 90 else "dev" if slot < 95 else "test"


def names_for(kind: str) -> Sequence[str]:
    """Return the names a hero of this kind can have."""
    if kind in world.SHE_KINDS:
        return world.GIRLS
    return world.BOYS if kind in world.HE_KINDS else world.NAMES


def draw(rng: random.Random, split: Split, *, placed: bool = True) -> Request:
    """Return random full facts of the split; without a place the facts left over must be of the split as well."""
    while True:
        kind, problem = rng.choice(world.KINDS), rng.choice(list(world.PROBLEMS))
        item, place = rng.choice(world.PROBLEMS[problem].items), rng.choice(world.PROBLEMS[problem].places)
        if split_of(kind, item, place, problem) == split and (placed or split_of(kind, item, "", problem) == split):
            adjective = rng.choice(world.ADJECTIVES) if rng.random() < 0.75 else ""
            return Request(kind, rng.choice(names_for(kind)), item, adjective, place, problem)


def _thing(request: Request) -> str:
    return f"{request.adjective} {request.item}".strip()


def at(place: str) -> str:
    """Return where a story happens, as an instruction says it: in the forest."""
    return f"{world.PLACES[place]} the {place}"


def hero(request: Request) -> str:
    """Return the hero and the mishap as an instruction names them: a fox named Pip who lost a red kite."""
    named = f" named {request.name}" if request.name else ""
    thing = _thing(request)
    clause = world.PROBLEMS[request.problem].asked.format(a=f"a {thing}", thing=thing)
    return f"a {request.kind}{named} {clause}"


def about(request: Request) -> str:
    """Return what a story is about, as an instruction says it."""
    return f"{hero(request)} {at(request.place)}" if request.place else hero(request)


# ---- telling ----


def _slots(request: Request, helper: str) -> Slots:
    """Return the words that fill the templates; request must be full."""
    assert request.name and request.place
    boy = request.name in world.BOYS
    ability = world.PROBLEMS[request.problem].ability
    return {
        "name": request.name, "kind": request.kind, "a_kind": f"a {request.kind}", "about": about(request),
        "he": "he" if boy else "she", "his": "his" if boy else "her",
        "noun": request.item, "full": _thing(request), "a_full": f"a {_thing(request)}",
        "place": request.place, "helper": helper, "a_helper": f"a {helper}",
        "can": world.ABILITIES[ability][0], "own": world.ABILITIES[world.ABILITY_OF[helper]][0],
    }  # fmt: skip


def _say(rng: random.Random, templates: Sequence[str], slots: Slots) -> str:
    """Return one of the templates, filled, as a sentence with a capital."""
    return _sentence(rng.choice(templates), slots)


def _mishap(rng: random.Random, problem: str, slots: Slots, leads: Sequence[str]) -> str:
    """Return the sentence that tells the mishap."""
    it = rng.choice(("the {noun}", "the {full}", "{his} {noun}")).format_map(slots)
    clause = world.PROBLEMS[problem].told.format(name=slots["name"], it=it)
    lead = rng.choice(leads)
    if lead[-1] in "!?":
        clause = clause[0].upper() + clause[1:]
    return f"{lead} {clause}."


def _outcome(rng: random.Random, story: Story, slots: Slots) -> list[str]:
    """Return what came of the helper's visit, up to the ending."""
    problem = world.PROBLEMS[story.request.problem]
    if story.able:
        act, worked = rng.choice(problem.acts)
        failed = rng.choice(world.FAIL_SPOILED if problem.damage else world.FAIL_GONE)
        done = f"The {{helper}} {act} and {worked}." if story.happy else f"The {{helper}} {act}, {failed}."
        lines = [_say(rng, world.OFFER, slots), done.format_map(slots)]
    else:
        lines = [_say(rng, world.REFUSE, slots), _say(rng, world.NO_ONE, slots)]
    if rng.random() < (0.1 if story.happy else 0.55):  # unlike, so that happy and unhappy stories are of one length
        lines.append(_say(rng, world.THANKS if story.happy else world.SORRY, slots))
    return lines


def _ending(rng: random.Random, story: Story, slots: Slots) -> str:
    fits = ("any", "spoiled" if world.PROBLEMS[story.request.problem].damage else "gone")
    return _say(rng, [end.text for end in world.ENDINGS if end.happy == story.happy and end.on in fits], slots)


def _call_and_meet(rng: random.Random, slots: Slots) -> list[str]:
    """Return the hero's call and the helper's coming; one of them names the place again."""
    if rng.random() < 0.5:
        return [_say(rng, world.CRY_HERE, slots), _say(rng, world.ARRIVE, slots)]
    return _ask_one_here(rng, slots)


def _ask_one_here(rng: random.Random, slots: Slots) -> list[str]:
    """Return the hero's words and the helper's coming at the place."""
    return [_say(rng, world.CRY, slots), _say(rng, world.ARRIVE_HERE, slots)]


def _plain(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.OPEN, world.OWN, world.GO)]
    return [*start, _mishap(rng, problem, slots, world.LEADS), *_call_and_meet(rng, slots)]


def _title(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    title = _say(rng, world.TITLE, slots)
    start = [f"{title}\n\n{_say(rng, world.OPEN, slots)}", _say(rng, world.COME, slots)]
    return [*start, _mishap(rng, problem, slots, world.LEADS), *_call_and_meet(rng, slots)]


def _dialogue(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.FIRST_WORDS, world.WHO_CALLED)]
    return [*start, _mishap(rng, problem, slots, world.THIS_HAPPENED), _say(rng, world.ARRIVE_HERE, slots)]


def _middle(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.MIDDLE, world.MISSED)]
    return [*start, _mishap(rng, problem, slots, world.THIS_HAPPENED), *_ask_one_here(rng, slots)]


def _tries(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.OPEN, world.COME)]
    tries = [_say(rng, part, slots) for part in (world.TRY_ONE, world.TRY_TWO, world.TRY_THREE)]
    return [*start, _mishap(rng, problem, slots, world.LEADS), *tries]


def _helper_first(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.HELPER_FIRST, world.HERO_COMES)]
    return [*start, _mishap(rng, problem, slots, world.LEADS), _say(rng, world.CRY_HERE, slots)]


def _frame(rng: random.Random, problem: str, slots: Slots) -> list[str]:
    start = [_say(rng, part, slots) for part in (world.FRAME, world.GO)]
    meet = [_say(rng, part, slots) for part in (world.CRY, world.ARRIVE)]
    return [*start, _mishap(rng, problem, slots, world.LEADS), *meet]


SHAPES = {
    "plain": _plain, "title": _title, "dialogue": _dialogue, "middle": _middle, "tries": _tries,
    "helper first": _helper_first, "frame": _frame,
}  # fmt: skip


def tell(rng: random.Random, request: Request, *, happy: bool, foretold: bool | None = None) -> Story:
    """Return a story of the full request with the wanted ending, in a random shape.

    One that is foretold says at its beginning, and before it comes, what its ending is.
    """
    able = happy or rng.random() < 0.6
    _, helpers, useless = world.ABILITIES[world.PROBLEMS[request.problem].ability]
    helper = rng.choice(helpers if able else world.ABILITIES[rng.choice(useless)][1])
    shape = rng.choice(list(SHAPES))
    story = Story(request, helper, able, happy, shape, "")
    slots = _slots(request, helper)
    lines = SHAPES[shape](rng, request.problem, slots)
    if foretold is not None:
        lines = [world.ENDS[foretold], *lines, world.ENDS_SO[foretold]]
    lines += [*_outcome(rng, story, slots), _ending(rng, story, slots)]
    return replace(story, text=" ".join(lines))


def stories(split: Split, seed: int, foretold: float = 0.0) -> Iterator[Story]:
    """Return the endless stream of the split's stories; half of them end happily, a share is foretold."""
    rng = random.Random(f"stories/{split}/{seed}")
    while True:
        happy = rng.random() < 0.5
        yield tell(rng, draw(rng, split), happy=happy, foretold=happy if rng.random() < foretold else None)


def introduce(rng: random.Random, story: Story) -> str:
    """Return a few lines about the story's hero, thing and place, without what happens to them."""
    slots = _slots(story.request, story.helper)
    habits = rng.sample(world.HABITS, rng.randint(4, 6))
    return " ".join(line.format_map(slots) for line in [rng.choice(world.MEET), *habits])


def shorten(rng: random.Random, story: Story, *, happy: bool) -> str:
    """Return what the story is about, its mishap and this ending."""
    slots = _slots(story.request, story.helper)
    mishap = _mishap(rng, story.request.problem, slots, world.LEADS)
    return " ".join([_say(rng, world.FRAME, slots), mishap, _ending(rng, replace(story, happy=happy), slots)])


def frame(rng: random.Random, story: Story) -> str:
    """Return the story's text after a sentence that says what it is about."""
    return f"{_say(rng, world.FRAME, _slots(story.request, story.helper))} {story.text}"


@dataclass(frozen=True)
class Question:
    """What can be asked about a story: its kind, ways to ask it, and the true short answer."""

    kind: str
    asked: tuple[str, ...]
    answer: str


def fill(template: str, facts: Request) -> str:
    """Return the template with the words of the facts, of which no helper is a part."""
    return template.format_map(_slots(facts, world.HELPERS[0]))


def questions(story: Story) -> list[Question]:
    """Return what can be asked about the story."""
    facts, slots = story.request, _slots(story.request, story.helper)
    told = world.PROBLEMS[facts.problem].told.format(name=facts.name, it=f"the {facts.item}")
    helped = "{a_helper} helped {name}." if story.happy else "{a_helper} came, but could not help."
    mood = "Yes, {name} was happy." if story.happy else "No, {name} was sad."
    answers = {"happened": f"This happened: {told}.", "helped": helped, "mood": mood} | world.ANSWERS
    if facts.adjective not in world.COLORS:
        del answers["color"]
    return [
        Question(kind, tuple(asked.format_map(slots) for asked in world.QUESTIONS[kind]), _sentence(answer, slots))
        for kind, answer in answers.items()
    ]


def _sentence(template: str, slots: Slots) -> str:
    text = template.format_map(slots)
    return text[0].upper() + text[1:]


def examine(rng: random.Random, text: str, about: list[Question]) -> str:
    """Return the text and a few questions about it with their answers; the hard ones are always asked.

    How a story ended, what happened and who helped are learnt last: no single word before is the answer.
    """
    hard = [question for question in about if question.kind in HARD_KINDS]
    others = [question for question in about if question.kind not in HARD_KINDS]
    pairs = hard + rng.sample(others, rng.randint(1, 2) if hard else rng.randint(2, min(4, len(others))))
    rng.shuffle(pairs)
    return "\n\n".join([text, "\n".join(f"{rng.choice(pair.asked)} {pair.answer}" for pair in pairs)])


def _introduced(story: Story, text: str) -> list[Question]:
    """Return the questions that an introduction answers: their answers name no fact that it leaves out."""
    facts = {str(story.request.place), story.request.item, story.request.adjective} - {""}
    left_out = {fact for fact in facts if fact not in text}
    asked = [question for question in questions(story) if question.kind in INTRODUCED_KINDS]
    return [question for question in asked if not left_out & set(re.findall(r"[a-z]+", question.answer))]


def documents(split: Split, seed: int) -> Iterator[str]:
    """Return the endless stream of pretraining texts: introductions, short and whole stories.

    An introduction repeats few facts often. A small model learns there to carry a name on, which it does hundreds of
    steps later from stories alone. A short story is asked about and told again with the other ending. Of the others,
    many are asked about at their end, and some say first what they are about, as an instruction will.
    """
    rng = random.Random(f"introductions/{split}/{seed}")
    for story in stories(split, seed, FORETOLD):
        kind = rng.random()
        if kind < INTRODUCED:
            text = introduce(rng, story)
            yield examine(rng, text, _introduced(story, text)) if rng.random() < 0.5 else text
        elif kind < INTRODUCED + BRIEF:
            text = shorten(rng, story, happy=story.happy)
            other = shorten(rng, story, happy=not story.happy)
            about = [question for question in questions(story) if question.kind in BRIEF_KINDS]
            yield f"{examine(rng, text, about)}{_once_more(rng, story)} {other}"
        elif kind < INTRODUCED + BRIEF + EXAMINED:
            text = examine(rng, story.text, questions(story))
            yield text + _once_more(rng, story) if rng.random() < 0.5 else text
        else:
            yield frame(rng, story) if story.shape != "frame" and rng.random() < 0.6 else story.text


def _once_more(rng: random.Random, story: Story) -> str:
    """Return how the story is asked for with another ending, and the first sentence of the answer."""
    return f"\n{rng.choice(world.AGAIN)} {world.ENDS[not story.happy]}"
