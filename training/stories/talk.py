"""What is said to a storyteller and what it should answer: conversations, preference pairs, prompts, later turns.

Every generator is an endless stream that depends on its split and seed alone, as the stories of
`training.stories.tell` do, from which all truth comes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.stories import small_talk, world
from training.stories.checker import check
from training.stories.tell import (
    Request,
    Split,
    Story,
    StoryMessage,
    about,
    at,
    draw,
    fill,
    hero,
    names_for,
    questions,
    tell,
)

# The lists are packed by hand.
# fmt: off

ABOUT = (
    "Tell me a story about {about}.", "Write a short story about {about}.", "Can you tell me a story about {about}?",
    "Please tell me a story about {about}.", "I want to hear a story about {about}.", "Make up a story about {about}.",
    "Write a story about {about}, please.", "Could you write a story about {about}?", "Tell me about {about}.",
    "Tell a bedtime story about {about}.", "I would like a short story about {about}.",
    "Story time! Tell me about {about}.", "What happened to {about}? Tell me the story.",
)
ABOUT_PLACED = (
    "Tell me a story about {hero}. It happens {at}.", "Write a short story that happens {at}. It is about {hero}.",
    "I want a story from the {place} about {hero}.", "Please tell a story about {hero}. The place is the {place}.",
)
# Requests that leave nearly all open.
OPEN_REQUESTS = (
    "Tell me a story about {a_kind}.", "Tell me a story.", "Write a story about {a_kind} named {name}.",
    "Can you tell me a story about {a_kind}?", "Tell me a story about {name} the {kind}.", "A story, please!",
    "Write a short story about {a_kind}.", "Please tell me a story.", "I want a story about {a_kind} named {name}.",
    "Tell me something about {a_kind}.", "Can you tell me a story?", "Make up a story about {a_kind}.",
)
SYSTEM = (
    "You are a kind storyteller.", "You tell short stories for children.", "You are a friend who tells good stories.",
    "You write little stories in simple words.", "You help children with stories.",
    "You are a storyteller. Use short sentences.",
)
BEFORE_NEXT = ("Thank you!", "Nice story.", "One more, please.", "Now another one.", "I liked that.")

# fmt: on

# Shares of the conversations that begin with, and of the later turns that are, something else than a story request.
SMALL_TALK, OPEN = 0.12, 0.1
# Shares of the preference pairs that are about something else than a story, and, of the others, about facts, and
# after another story.
BESIDES, NEAR_MISSES, AFTER_ANOTHER = 0.4, 1 / 3, 0.25


def user(text: str) -> StoryMessage:
    """Return a user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> StoryMessage:
    """Return the assistant's turn."""
    return {"role": "assistant", "content": text}


def _ask(rng: random.Random, split: Split) -> tuple[Request, Request, str]:
    """Return full facts, what the instruction asks of them, and the instruction."""
    placed = rng.random() < 0.85
    facts = draw(rng, split, placed=placed)
    asked = replace(facts, name=facts.name if rng.random() < 0.85 else None, place=facts.place if placed else None)
    if facts.place and placed and rng.random() < 0.2:
        words = {"hero": hero(asked), "at": at(facts.place), "place": facts.place}
        return facts, asked, rng.choice(ABOUT_PLACED).format_map(words)
    return facts, asked, rng.choice(ABOUT).format(about=about(asked))


def _ask_openly(rng: random.Random, split: Split) -> tuple[Request, str]:
    """Return full facts and a request that names the hero at most."""
    facts = draw(rng, split)
    return facts, fill(rng.choice(OPEN_REQUESTS), facts)


def _system(rng: random.Random) -> list[StoryMessage]:
    """Return a system message, one time in four."""
    return [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.25 else []


def _small_talk(rng: random.Random, split: Split) -> list[StoryMessage]:
    """Return something that is no request for a story, and the honest answer."""
    kind = small_talk.kind_of(rng)
    return [user(small_talk.draw(rng, split, kind)), assistant(small_talk.ANSWERS[kind])]


def _told(rng: random.Random, split: Split) -> tuple[Story, list[StoryMessage]]:
    """Return a story that was asked for, and the two turns that have it."""
    if rng.random() < OPEN:
        facts, instruction = _ask_openly(rng, split)
    else:
        facts, _, instruction = _ask(rng, split)
    story = tell(rng, facts, happy=rng.random() < 0.5)
    return story, [user(instruction), assistant(story.text)]


def _later(rng: random.Random, split: Split, story: Story) -> list[StoryMessage]:
    """Return the later turns: questions about the story, its retelling with the other ending, a new story, or
    something else altogether."""
    kind = rng.choices(("questions", "again", "next", "small talk"), (4, 3, 3, 1))[0]
    if kind == "questions":
        pairs = rng.sample(questions(story), rng.randint(4, 8))
        return [turn for pair in pairs for turn in (user(rng.choice(pair.asked)), assistant(pair.answer))]
    if kind == "again":
        return [user(rng.choice(world.AGAIN)), _tell_again(rng, story, happy=not story.happy)]
    if kind == "small talk":
        return _small_talk(rng, split)
    _, (asked, told) = _told(rng, split)
    return [user(f"{rng.choice(BEFORE_NEXT)} {asked['content']}"), told]


def _tell_again(rng: random.Random, story: Story, *, happy: bool) -> StoryMessage:
    """Return the story told anew, with this ending; that it would be the other one is said before."""
    return assistant(tell(rng, story.request, happy=happy, foretold=not story.happy).text)


def conversations(split: Split, seed: int) -> Iterator[dict[str, list[StoryMessage]]]:
    """Return the endless stream of conversations for fine-tuning, three in five of more than one turn."""
    rng = random.Random(f"conversations/{split}/{seed}")
    while True:
        messages = _system(rng)
        if rng.random() < SMALL_TALK:
            messages += _small_talk(rng, split)
        else:
            story, turns = _told(rng, split)
            messages += turns
            if rng.random() < 0.7:
                messages += _later(rng, split, story)
        yield {"messages": messages}


def preferences(split: Split, seed: int) -> Iterator[dict[str, list[StoryMessage]]]:
    """Return the endless stream of pairs: chosen tells what was asked and ends happily; rejected ends unhappily,
    or (one in three) ends happily and has one of the facts wrong.

    Two pairs in five are about what comes besides such a story. Of a question the true answer is chosen and an untrue
    one rejected; of small talk the honest sentence and a story, of some requests the other way round. Of another
    ending both say first that they have it, but the rejected one ends as before.
    """
    rng = random.Random(f"preferences/{split}/{seed}")
    while True:
        if rng.random() < BESIDES:
            yield _true_and_untrue(rng, split)
            continue
        asked = None
        if rng.random() < OPEN:
            facts, instruction = _ask_openly(rng, split)
        else:
            facts, asked, instruction = _ask(rng, split)
        chosen, rejected = tell(rng, facts, happy=True), tell(rng, facts, happy=False)
        if asked and rng.random() < NEAR_MISSES:
            rejected = tell(rng, _near_miss(rng, split, facts, asked), happy=True)
        prompt = _system(rng)
        if rng.random() < AFTER_ANOTHER:
            prompt += _told(rng, split)[1]
            instruction = f"{rng.choice(BEFORE_NEXT)} {instruction}"
        prompt.append(user(instruction))
        yield {"prompt": prompt, "chosen": [assistant(chosen.text)], "rejected": [assistant(rejected.text)]}


def _near_miss(rng: random.Random, split: Split, facts: Request, asked: Request) -> Request:
    """Return the facts with one that was asked for replaced, where a story can be told of the rest."""
    named = [name for name in ("kind", "name", "item", "adjective", "place", "problem") if getattr(asked, name)]
    while True:
        name = rng.choice(named)
        missed = replace(facts, **{name: getattr(draw(rng, split), name)})
        fits = world.PROBLEMS[missed.problem]
        if missed != facts and missed.item in fits.items and missed.place in fits.places:
            if missed.name in names_for(missed.kind):
                return missed


def _true_and_untrue(rng: random.Random, split: Split) -> dict[str, list[StoryMessage]]:
    """Return a pair that is not about the request of a story, of which one answer is true."""
    kind = rng.random()
    if kind < 0.225:
        asked, honest = _small_talk(rng, split)
        facts, _, instruction = _ask(rng, split)
        tale = assistant(tell(rng, facts, happy=True).text)
        # In one of nine the honest sentence is the wrong answer: a story was asked for. Without these some models
        # gave it to requests of stories. And half of the small talk comes after a story, where the sentence with one
        # word of that story would do as well.
        if kind >= 0.2:
            return {"prompt": [*_system(rng), user(instruction)], "chosen": [tale], "rejected": [honest]}
        before = _told(rng, split)[1] if rng.random() < 0.5 else []
        return {"prompt": [*_system(rng), *before, asked], "chosen": [honest], "rejected": [tale]}
    story, told = _told(rng, split)
    if rng.random() < 0.55:
        same = _tell_again(rng, story, happy=story.happy)
        prompt = [*_system(rng), *told, user(rng.choice(world.AGAIN))]
        return {"prompt": prompt, "chosen": [_tell_again(rng, story, happy=not story.happy)], "rejected": [same]}
    question = rng.choice(questions(story))
    untrue = question
    while untrue.kind != question.kind or untrue.answer == question.answer:
        # What it could be taken for: the same story with one fact and its ending changed.
        other = _near_miss(rng, split, story.request, story.request)
        untrue = rng.choice(questions(tell(rng, other, happy=not story.happy)))
    prompt = [*_system(rng), *told, user(rng.choice(question.asked))]
    return {"prompt": prompt, "chosen": [assistant(question.answer)], "rejected": [assistant(untrue.answer)]}


def prompts(split: Split, seed: int) -> Iterator[tuple[Request, list[StoryMessage]]]:
    """Return the endless stream of single-turn instructions for evaluation, each with what it asks for."""
    rng = random.Random(f"prompts/{split}/{seed}")
    while True:
        _, asked, instruction = _ask(rng, split)
        yield asked, [user(instruction)]


# ---- what people do besides asking for one story ----


@dataclass(frozen=True)
class Turn:
    """A conversation up to a user's turn, and what the answer to it must be: these words, or such a story."""

    kind: str
    messages: list[StoryMessage]
    answer: str | None = None
    request: Request | None = None
    happy: bool | None = None

    def is_right(self, completion: str) -> bool:
        """Whether the completion is the true answer, or a story of the request with the wanted ending."""
        if self.kind == "small talk":
            return small_talk.is_honest(completion)
        if self.request is None:
            return completion.strip() == self.answer
        found = check(self.request, completion)
        return found.followed and self.happy in (None, found.happy)


TURNS = (*world.QUESTIONS, "again", "next", "open", "small talk")


def turns(split: Split, seed: int, number: int) -> list[Turn]:
    """Return so many questions, an equal number of each kind; half as many turns of small talk; and an eighth as many
    of each kind that asks for another story: the other ending, the next one, an open request. At least one of each.

    A story that is asked about is the true one, told by the generator, so that a turn measures what comes after it.
    """
    rng = random.Random(f"turns/{split}/{seed}")
    wanted = dict.fromkeys(world.QUESTIONS, number // len(world.QUESTIONS))
    wanted |= dict.fromkeys(("again", "next", "open"), number // 8) | {"small talk": number // 2}
    found: dict[str, list[Turn]] = {kind: [] for kind in TURNS}
    while any(len(found[kind]) < max(1, wanted[kind]) for kind in TURNS):
        for turn in _turns_of_a_story(rng, split):
            if len(found[turn.kind]) < max(1, wanted[turn.kind]):
                found[turn.kind].append(turn)
    return [turn for kind in TURNS for turn in found[kind]]


def _named_in(facts: Request, instruction: str) -> Request:
    """Return what an open request says of the facts."""
    kind = facts.kind if facts.kind in instruction else ""
    name = facts.name if facts.name and facts.name in instruction else None
    return Request(kind, name, item="", adjective="", place=None, problem="")


def _turns_of_a_story(rng: random.Random, split: Split) -> Iterator[Turn]:
    facts, _, instruction = _ask(rng, split)
    story = tell(rng, facts, happy=rng.random() < 0.5)
    told = [user(instruction), assistant(story.text)]
    question = rng.choice(questions(story))
    yield Turn(question.kind, [*told, user(rng.choice(question.asked))], question.answer)
    yield Turn("again", [*told, user(rng.choice(world.AGAIN))], request=facts, happy=not story.happy)
    _, asked, instruction = _ask(rng, split)
    yield Turn("next", [*told, user(f"{rng.choice(BEFORE_NEXT)} {instruction}")], request=asked)
    facts, instruction = _ask_openly(rng, split)
    yield Turn("open", [user(instruction)], request=_named_in(facts, instruction))
    kind = small_talk.kind_of(rng)
    before = told if rng.random() < 0.3 else []
    yield Turn("small talk", [*before, user(small_talk.draw(rng, split, kind))], small_talk.ANSWERS[kind])
