"""What can be read of a book beyond doubt: prose that goes on, sentences, and who says what.

Whatever is not clear is left out: headings, verses, lists, notes, speech that is interrupted or goes on in the next
paragraph, a speaker who is no name. A book gives far more than is needed, so strictness costs nothing.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# The lists are packed by hand.
# fmt: off

TITLES = (
    "Mr", "Mrs", "Miss", "Ms", "Dr", "Mme", "Captain", "Colonel", "Major", "General", "Sergeant", "Lieutenant",
    "Professor", "Judge", "Squire", "Uncle", "Aunt", "Cousin", "Lord", "Lady", "Sir", "King", "Queen", "Prince",
    "Princess", "Madame", "Master", "Mistress", "Farmer", "Deacon", "Father", "Mother", "Brother", "Sister",
)
ABBREVIATIONS = (
    "Mr", "Mrs", "Ms", "Dr", "St", "Mme", "Mlle", "Messrs", "Prof", "Rev", "Hon", "Capt", "Col", "Gen", "Lieut",
    "Sergt", "Esq", "Jr", "Sr", "Vol", "No", "viz", "etc", "i.e", "e.g", "[A-Z]",
)
SAID = (
    "said", "says", "asked", "cried", "replied", "answered", "exclaimed", "shouted", "whispered", "called", "remarked",
    "observed", "inquired", "enquired", "murmured", "muttered", "declared", "demanded", "returned", "growled",
    "screamed", "laughed", "sighed", "sobbed", "explained", "suggested", "repeated", "continued", "added", "begged",
    "stammered", "gasped", "grumbled", "responded", "ventured", "announced", "agreed", "protested", "insisted",
)

# fmt: on

_SAID = "|".join(SAID)
_TITLE = "|".join(TITLES)
NAME = rf"(?:(?:{_TITLE})\.? )?[A-Z][a-z]+(?:-[A-Z][a-z]+)?(?: (?!(?:{_SAID})\b)[A-Z][a-z]+)?"
_ALONE = r"(?=[.,;:!?]|$| (?!and\b|or\b|of\b|the\b|to the\b)[a-z])(?!,? (?:and|or) [A-Z]|, [A-Z])"
_SPOKEN = re.compile(rf"\b(?:{_SAID})\b")
# A paragraph whose only speech is `speech` and whose speaker is `name`; its curly quotes are made straight.
TAGS = (
    re.compile(rf'(?:[^"]*[.!?] )?"(?P<speech>[^"]+[,.!?])" (?:{_SAID}) (?P<name>{NAME}){_ALONE}[^"]*'),
    re.compile(rf'(?:[^"]*[.!?] )?"(?P<speech>[^"]+[,.!?])" (?P<name>{NAME}) (?:{_SAID})\b(?! (?:and|or) [A-Z])[^"]*'),
    re.compile(rf'(?P<name>{NAME}) (?:{_SAID})[,:] "(?P<speech>[^"]+[.!?])"'),
)
_BLANK = re.compile(r"\n[ \t]*\n")
_HEADING = re.compile(r"(?:chapter|book|part|letter|stave|volume|section|act|scene|note|footnote|the end)\b", re.I)
_STRANGE = re.compile(r"[\[\]{}<>*|#=@^~\\/_+]|\d{3}|https?:|\.\.\.\.")
ENDS = re.compile(r"[.!?][\"”’')]*$")
_BEGINS = re.compile(r"[\"“‘'(]*[A-Z]")
_END = re.compile(r"[.!?]+[\"”)]*\s+(?=[\"“(]?[A-Z])")
_ABBREVIATED = re.compile(rf"\b(?:{'|'.join(ABBREVIATIONS)})\.\s+$")
_ATTRIBUTED = re.compile(rf"(?:{NAME}|He|She|It|They|I|We) (?:\w+ly )?(?:{_SAID})\b")
_SINGLE = re.compile(r"(?:^|[\s\"“(—-])['‘]")
_WORD = re.compile(r"[A-Za-z]+")
_CAPITAL, _CAPITALIZED = re.compile("[A-Z]"), re.compile(r"\b[A-Z]")
LONGEST = 12  # characters of an abbreviation, and more
VERSE = 50  # characters: text whose lines are all shorter is verse
FEWEST = 2  # times that somebody who is taken for a person speaks in a book
COMMON = 0.1  # share of small letters from which on a word is taken for no name


@dataclass(frozen=True)
class Sentence:
    """A sentence, or several that belong to one speech, and whether it begins a paragraph."""

    text: str
    opens: bool

    @property
    def words(self) -> int:
        """How long it is."""
        return len(self.text.split())


@dataclass(frozen=True)
class Speech:
    """What is said in a paragraph, and by whom."""

    text: str
    speaker: str


class Book:
    """A document of prose: `runs` of sentences between which nothing was left out."""

    def __init__(self, text: str) -> None:
        runs: list[list[Sentence]] = [[]]
        for block in _BLANK.split(text):
            if paragraph := read_prose(block):
                runs[-1] += [Sentence(one, i == 0) for i, one in enumerate(cut_sentences(paragraph))]
            else:
                runs.append([])
        self.runs = [run for run in runs if run]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The names of those who speak in it, which are common words in no other place."""
        words, speakers = Counter[str](), Counter[str]()
        for run in self.runs:
            words.update(_WORD.findall(join(run)))
            for place, sentence in enumerate(run):
                if sentence.opens and (speech := read_speech(paragraph_at(run, place))):
                    speakers[speech.speaker] += 1
        return frozenset(
            name
            for name, count in speakers.items()
            if count >= FEWEST and words[(own := own_words(name)[0]).lower()] <= COMMON * words[own]
        )


def straighten(text: str) -> str:
    """Return a text with straight quotes, of the same length."""
    return text.replace("“", '"').replace("”", '"')


def join(sentences: Sequence[Sentence]) -> str:
    """Return the text of sentences that follow one another."""
    return "".join(("\n\n" if one.opens else " ") + one.text for one in sentences).strip()


def paragraph_at(run: Sequence[Sentence], place: int) -> str:
    """Return the paragraph that begins with the sentence of this place."""
    end = next((i for i in range(place + 1, len(run)) if run[i].opens), len(run))
    return join(run[place:end])


def own_words(name: str) -> list[str]:
    """Return the words of a name that are no title."""
    words = _WORD.findall(name)
    return words[1:] if words[0] in TITLES and len(words) > 1 else words


def is_titled(name: str) -> bool:
    """Whether the name begins with a title."""
    return name.split()[0].removesuffix(".") in TITLES


def read_prose(block: str) -> str | None:
    """Return a paragraph of a book on one line; None for what is no whole paragraph of prose."""
    lines = block.strip("\n").splitlines()
    text = re.sub(r"\b_|_\b", "", " ".join(block.split()))  # what is between these signs was in italics
    if not (_BEGINS.match(text) and ENDS.search(text)) or _STRANGE.search(text) or _HEADING.match(text):
        return None
    if len(lines) > 1 and (max(map(len, lines)) < VERSE or any(line[:2].isspace() for line in lines[1:])):
        return None
    words = text.count(" ") + 1
    if len(_CAPITAL.findall(text)) > 0.2 * len(text) or len(_CAPITALIZED.findall(text)) > max(1, 0.7 * words):
        return None
    return text if is_balanced(text) else None


def is_balanced(text: str) -> bool:
    """Whether all that is quoted begins and ends in it."""
    if "“" in text or "”" in text:
        right = re.fullmatch("[^“”]*(?:“[^“”]*”[^“”]*)*", text) is not None and '"' not in text
    else:
        right = re.fullmatch(r'[^"]*(?:(?<![\w,.!?])"(?!\s)[^"]*(?<!\s)"(?!\w)[^"]*)*', text) is not None
    return right and text.count("(") == text.count(")")


def cut_sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph; a speech stays together, with what is said of its speaker.

    Where single quotes may hold a speech, which apostrophes look like, the whole paragraph counts as one.
    """
    if _SINGLE.search(paragraph):
        return [paragraph]
    straight = straighten(paragraph)
    found, begin = [], 0
    for match in _END.finditer(straight):
        end = match.end()
        if straight.count('"', begin, end) % 2 or _ABBREVIATED.search(straight, max(begin, end - LONGEST), end):
            continue
        if straight[:end].endswith('" ') and _ATTRIBUTED.match(straight, end):
            continue
        found.append(paragraph[begin:end].strip())
        begin = end
    return [*found, paragraph[begin:]]


def read_speech(paragraph: str) -> Speech | None:
    """Return what is said in a paragraph and who says it; None where anything about it is not clear."""
    straight = straighten(paragraph)
    if straight.count('"') != 2 or _SPOKEN.search(straight) is None or _SINGLE.search(straight):
        return None
    for tag in TAGS:
        if match := tag.fullmatch(straight):
            return Speech(match["speech"].removesuffix(","), match["name"])
    return None
