"""Reading what a model wrote: which parts of a request a story fulfils, and how it ends."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.stories import world
from training.stories.tell import Request

PARTS = ("hero", "item", "place", "problem", "complete")  # of a request that was followed


@dataclass(frozen=True)
class Verdict:
    """What a completion got right of a request."""

    hero: bool
    item: bool
    place: bool
    problem: bool
    complete: bool
    happy: bool

    @property
    def followed(self) -> bool:
        """Whether everything asked for is there, whatever the mood of the ending."""
        return all(getattr(self, part) for part in PARTS)


def _either(words: Sequence[str]) -> str:
    return f"(?:{'|'.join(words)})"


_WORD = {
    "name": "(?P<name>[A-Z][a-z]+)", "he": "(?:he|she)", "his": "(?:his|her)", "noun": _either(list(world.ITEMS)),
    "full": f"(?:{_either(world.ADJECTIVES)} )?{_either(list(world.ITEMS))}", "helper": _either(world.HELPERS),
}  # fmt: skip
_SENTENCE_END = re.compile(r'(?<=[.!?"])\s+')
_ENDINGS = [(end.happy, re.compile(end.text.format_map(_WORD).replace(".", "[.]"))) for end in world.ENDINGS]
_MISHAP_THING = r"\b(?:the|his|her|a|an) [\w ]+?"
_MISHAPS = {
    key: re.compile(problem.told.format(name="[a-z]", it=_MISHAP_THING) + r"\b")
    for key, problem in world.PROBLEMS.items()
}
_GLOOM = re.compile(_either(world.GLOOM), re.IGNORECASE)
_CAPITAL_INSIDE = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]+")


def _found(words: Iterable[str], text: str) -> set[str]:
    """Return which of the words stand in the text."""
    return set(words) & set(re.findall(r"[a-z]+", text.lower()))


def _as_ending(sentence: str) -> tuple[bool, str] | None:
    """Whether the sentence ends a story happily, and the name in it; None where it is no ending."""
    for happy, pattern in _ENDINGS:
        if match := pattern.fullmatch(sentence):
            return happy, match["name"]
    return None


def _one_hero(text: str, name: str) -> bool:
    """Whether the text names this hero and no other."""
    named = _found(map(str.lower, world.NAMES), text)
    return named == {name.lower()} and set(_CAPITAL_INSIDE.findall(text)) <= {name}


def _right_item(request: Request, text: str) -> bool:
    """Whether the thing is the one asked for, of the asked look, and the only thing."""
    looks = set(re.findall(rf"\b({'|'.join(world.ADJECTIVES)}) {request.item}\b", text.lower()))
    looks_right = looks == {request.adjective} if request.adjective else True
    return looks_right and _is_one(request.item, _found(world.ITEMS, text))


def _is_one(wanted: str, found: set[str]) -> bool:
    """Whether there is what was wanted and nothing else; of what was left open, any one."""
    return found == {wanted} if wanted else len(found) == 1


def check(request: Request, completion: str) -> Verdict:
    """Return which parts of the request the completion fulfils, and whether its ending is a happy one."""
    text = completion.strip()
    *before, last = [_as_ending(sentence) for sentence in _SENTENCE_END.split(text)]
    ends_well = last is not None and all(ending is None or ending[0] for ending in (*before, last))
    name = request.name or (last[1] if last else None)
    places = _found(world.PLACES, text)
    return Verdict(
        hero=_is_one(request.kind, _found(world.KINDS, text)) and bool(name and re.search(rf"\b{name}\b", text)),
        item=_right_item(request, text),
        place=places == {request.place} if request.place else len(places) <= 1,
        problem=_is_one(request.problem, {key for key, pattern in _MISHAPS.items() if pattern.search(text.lower())}),
        complete=last is not None and last[1] == name and _one_hero(text, last[1]),
        happy=ends_well and not _GLOOM.search(text),
    )
