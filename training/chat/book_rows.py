"""What can be asked about a passage of a book, with the answer that the book itself gives, and with wrong ones.

Three requests have an answer that is true without anybody's judgement: how the passage goes on, who says something in
it, and which of two sentences comes next. What is no such request gets one honest sentence, as in the stories.
"""

import bisect
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from hf_scratch.tokenizer import Message
from training.chat.books import TITLES as TITLES_OF_PEOPLE
from training.chat.books import Book, Sentence, is_titled, join, own_words, paragraph_at, read_speech, straighten
from training.chat.formats import Row
from training.stories import small_talk
from training.stories.tell import Split

# The lists are packed by hand.
# fmt: off

CONTINUE = (
    "Continue this passage:\n\n{passage}", "Go on with this story:\n\n{passage}", "What comes next?\n\n{passage}",
    "Please continue:\n\n{passage}", "{passage}\n\nHow does it go on?", "{passage}\n\nPlease go on.",
    "Write the next lines of this book.\n\n{passage}", "{passage}\n\nWhat happens then?", "Go on: {passage}",
    "Continue: {passage}",
)
SPEAKER = (
    '{passage}\n\nWho says "{speech}"?', '{passage}\n\nWho said "{speech}"?', 'Who says "{speech}"?\n\n{passage}',
    '{passage}\n\nWho is speaking here? "{speech}"', 'In this passage, who says "{speech}"?\n\n{passage}',
    '{passage}\n\nTell me who says "{speech}".',
)
NEXT = (
    "{passage}\n\nWhich comes next?\n\n1. {one}\n\n2. {two}",
    "{passage}\n\nWhich of these two sentences comes next?\n\n1. {one}\n\n2. {two}",
    "Which sentence follows this passage?\n\n{passage}\n\n1. {one}\n\n2. {two}",
    "{passage}\n\nWhat comes next, 1 or 2?\n\n1. {one}\n\n2. {two}",
)

# fmt: on

CAN_DO = "I can only go on with a passage of a book, say who speaks in it, or say which sentence comes next."
HONEST = small_talk.answers(CAN_DO)
TITLES = {  # of the questions, in a report
    "continue": "a passage continued to a whole end", "speaker": "who speaks", "next": "which sentence comes next",
    "small talk": "honest where nothing of this was asked",
}  # fmt: skip
KINDS = {"continue": 0.4, "speaker": 0.25, "next": 0.25, "small talk": 0.1}  # what share of the requests each is
THANKS = 0.1  # share of the conversations in which the user says thank you
SPEECH, SENTENCE = (3, 25), (6, 30)  # fewest and most words of what is asked about
FAR = 30  # sentences between the end of a passage and one that does not come next
_WORD = re.compile(r"\w+")
ALIKE = 1.5  # how many times as long the longer of two sentences may be
TRIES = 20  # at most, to find a sentence elsewhere in the book
LOOP = (3, 8)  # words of a phrase that comes again and again
WRONG = (6, 6, 6, 1)  # continuations from elsewhere, that repeat, that stop, and that refuse: few, or none is refused
NICKNAME = 2  # letters that the names of two people do not have in common, as Steve and Stephen


@dataclass(frozen=True)
class Task:
    """A request, its true answers, of which the first is taught, and one that is wrong.

    chance: How often one who picks among what the request names is right; None where nothing is to be picked.
    """

    kind: str
    asked: str
    answers: tuple[str, ...]
    wrong: str
    chance: float | None = None

    def messages(self, answer: str) -> list[Message]:
        """Return the conversation with this answer."""
        return [{"role": "user", "content": self.asked}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Place:
    """A sentence of a book, by its run of sentences and its number there."""

    book: Book
    run: list[Sentence]
    number: int


class Asker:
    """Makes requests from books.

    Args:
        books: All of one side: trained on, or held out.
        split: Whose phrasings of small talk are used.
        count: Returns the tokens of a conversation.
        max_length: Tokens of request and answer; the longest passage has a third as many words.
    """

    def __init__(
        self, books: Sequence[Book], split: Split, seed: int, count: Callable[[list[Message]], int], max_length: int
    ) -> None:
        self.split, self.count, self.max_length = split, count, max_length
        self.rng = random.Random(f"books/{split}/{seed}")
        self.runs = [(book, run) for book in books for run in book.runs]
        self.ends = list(itertools.accumulate(len(run) for _, run in self.runs))

    def tasks(self, kinds: dict[str, float]) -> Iterator[Task]:
        """Return requests of these kinds in these shares; of a kind of which the books have no more, none."""
        streams = {kind: self.stream(kind) for kind in kinds}
        while streams.keys() - {"small talk"}:
            kind = self.rng.choices(list(streams), [kinds[kind] for kind in streams])[0]
            task = next(streams[kind], None)
            if task:
                yield task
            else:
                del streams[kind]

    def stream(self, kind: str) -> Iterator[Task]:
        """Return requests of one kind, each from another place of the books, and of several editions from one."""
        makers = {"continue": self.continued, "speaker": self.spoken, "next": self.followed, "small talk": self.talk}
        order = self.rng.sample(range(self.ends[-1]), self.ends[-1]) if self.ends else []
        seen = set()
        for number in order:
            place = self.place(number)
            task = makers[kind](place)
            begins = " ".join(_WORD.findall(place.run[place.number].text.lower()))
            if task is None or begins in seen:
                continue
            seen.add(begins)
            if all(self.count(task.messages(one)) <= self.max_length for one in (task.answers[0], task.wrong)):
                yield task

    def place(self, number: int) -> Place:
        """Return one of all the sentences of all books."""
        run = bisect.bisect_right(self.ends, number)
        book, sentences = self.runs[run]
        return Place(book, sentences, number - self.ends[run] + len(sentences))

    def take(self, run: Sequence[Sentence], begin: int, least: int, most: int) -> int:
        """Return the end of some sentences from `begin` on of so many words; `begin` if there are none."""
        goal, words = self.rng.randint(least, most), 0
        for number in range(begin, len(run)):
            words += run[number].words
            if words > most:
                return number if words - run[number].words >= least else begin
            if words >= goal:
                return number + 1
        return len(run) if words >= least else begin

    # ---- the requests ----

    def continued(self, place: Place) -> Task | None:
        """Ask how it goes on after a passage that begins at this place."""
        run, begin, most = place.run, place.number, self.max_length // 3
        middle = self.take(run, begin, most // 3, most)
        end = self.take(run, middle, most // 4, most * 2 // 3)
        if not (run[begin].opens and begin < middle < end):
            return None
        answer = join(run[middle:end])
        asked = self.rng.choice(CONTINUE).format(passage=join(run[begin:middle]))
        task = Task("continue", asked, (answer,), self.wrong_continuation(place, answer))
        return task if self.count(task.messages("")) <= self.max_length // 2 else None  # as much for the answer

    def wrong_continuation(self, place: Place, answer: str) -> str:
        """Return what goes on with something else, says the same again and again, stops in the middle, or refuses."""
        kind = self.rng.choices(("elsewhere", "loop", "cut", "refusal"), WRONG)[0]
        words = re.findall(r"\S+\s*", answer)
        if kind == "elsewhere" and (text := self.elsewhere(place, len(words))):
            return text
        if kind == "cut":
            short = "".join(words[: self.rng.randint(len(words) // 3, len(words) * 4 // 5)])
            return short.rstrip(" \n.!?,;:\"”’')-—")
        if kind == "refusal":
            return CAN_DO
        begin = self.rng.randint(0, len(words) // 2)
        phrase = words[begin : begin + self.rng.randint(*LOOP)]
        return "".join([*words[:begin], *itertools.islice(itertools.cycle(phrase), len(words) - begin)]).strip()

    def elsewhere(self, place: Place, words: int) -> str | None:
        """Return sentences of about so many words that stand in another place of the same book."""
        for _ in range(TRIES):
            run, begin = self.far(place)
            end = self.take(run, begin, words * 2 // 3, words)
            if begin < end:
                return join(run[begin:end])
        return None

    def far(self, place: Place) -> tuple[list[Sentence], int]:
        """Return a random sentence of the book, not near the place, as its run and its number there."""
        runs = place.book.runs
        run = self.rng.choices(runs, [len(run) for run in runs])[0]
        number = self.rng.randrange(len(run))
        near = run is place.run and abs(number - place.number) < FAR
        return (run, number) if not near else (run, len(run))

    def spoken(self, place: Place) -> Task | None:
        """Ask who says what is said in the paragraph that begins at this place."""
        if not place.run[place.number].opens:
            return None
        speech = read_speech(paragraph_at(place.run, place.number))
        if speech is None or speech.speaker not in place.book.names:
            return None
        passage = self.around(place)
        others = other_names(speech.speaker, passage, place.book.names)
        once = straighten(passage).count(speech.text) == 1
        if not (others and once and SPEECH[0] <= len(speech.text.split()) <= SPEECH[1]):
            return None
        asked = self.rng.choice(SPEAKER).format(passage=passage, speech=speech.text)
        wrong = f"{self.rng.choice(others)}."
        return Task("speaker", asked, (f"{speech.speaker}.",), wrong, 1 / (1 + len(others)))

    def around(self, place: Place) -> str:
        """Return the paragraph that begins at a place, with paragraphs before and after it."""
        run, begin, most = place.run, place.number, self.max_length // 3
        opens = [number for number, one in enumerate(run) if one.opens] + [len(run)]
        first = opens.index(begin)
        last, goal = first + 1, self.rng.randint(most // 2, most)

        def words(one: int, other: int) -> int:
            return sum(sentence.words for sentence in run[opens[one] : opens[other]])

        while words(first, last) < goal:
            before = self.rng.random() < 0.5
            first, last = (first - 1, last) if before else (first, last + 1)
            if first < 0 or last == len(opens) or words(first, last) > most:
                first, last = (first + 1, last) if before else (first, last - 1)
                break
        return join(run[opens[first] : opens[last]])

    def followed(self, place: Place) -> Task | None:
        """Ask which of two sentences comes after a passage that begins at this place."""
        run, begin, most = place.run, place.number, self.max_length // 3
        middle = self.take(run, begin, most // 3, most * 2 // 3)
        if not run[begin].opens or middle in (begin, len(run)):
            return None
        passage, right = join(run[begin:middle]), run[middle]
        other = self.like(Place(place.book, run, middle))
        if other is None or other in passage or right.text in passage:
            return None
        one, two = self.rng.sample((right.text, other), 2)
        asked = self.rng.choice(NEXT).format(passage=passage, one=one, two=two)
        return Task("next", asked, (right.text,), other, 0.5)

    def like(self, place: Place) -> str | None:
        """Return a sentence from elsewhere in the book that its form and length do not tell from that of a place."""
        right = place.run[place.number]
        if not SENTENCE[0] <= right.words <= SENTENCE[1]:
            return None
        for _ in range(TRIES):
            run, number = self.far(place)
            if number < len(run) and is_like(right, run[number]):
                return run[number].text
        return None

    def talk(self, place: Place) -> Task:
        """Say something that is no request for any of this; a wrong answer goes on as the book does at the place."""
        kind = small_talk.kind_of(self.rng)
        end = self.take(place.run, place.number, 10, self.max_length // 6)
        wrong = join(place.run[place.number : max(end, place.number + 1)])  # dropped if it is too long
        right = (HONEST[kind], *(answer for answer in HONEST.values() if answer != HONEST[kind]))
        return Task("small talk", small_talk.draw(self.rng, self.split, kind), right, wrong)

    # ---- rows ----

    def conversation(self, task: Task) -> Row:
        """Return a row to fine-tune on; in some the user says thank you."""
        messages = task.messages(task.answers[0])
        if task.kind != "small talk" and self.rng.random() < THANKS:
            thanks = Task("", small_talk.draw(self.rng, self.split, "thanks"), (HONEST["thanks"],), "")
            longer = [*messages, *thanks.messages(HONEST["thanks"])]
            messages = longer if self.count(longer) <= self.max_length else messages
        return {"messages": messages}


def pair(task: Task) -> Row:
    """Return a preference pair: the true answer and the wrong one."""
    chosen, rejected = ([task.messages(answer)[1]] for answer in (task.answers[0], task.wrong))
    return {"prompt": task.messages("")[:1], "chosen": chosen, "rejected": rejected}


def question(task: Task) -> Row:
    """Return a question to evaluate with; how a passage goes on has no exact answer."""
    answers = [] if task.kind == "continue" else list(task.answers)
    return {"kind": TITLES[task.kind], "prompt": task.messages("")[:1], "answers": answers, "chance": task.chance}


def is_like(one: Sentence, other: Sentence) -> bool:
    """Whether two sentences are of one form, so that nothing but what they say tells which comes next."""
    speaks = [straighten(sentence.text).startswith('"') for sentence in (one, other)]
    short, long = sorted((one.words, other.words))
    return one.opens == other.opens and speaks[0] == speaks[1] and long <= ALIKE * short and one.text != other.text


def other_names(name: str, passage: str, names: Set[str]) -> list[str]:
    """Return who else is named in a passage; nobody if the name does not stand there in one form only.

    Mr. Brown may be Tom, so of somebody with a title others with a title are named, of Tom other such names.
    """
    own = own_words(name)
    whole = len(re.findall(rf"\b{re.escape(name)}\b(?! [A-Z][a-z])", passage))
    if any(len(re.findall(rf"\b{word}\b", passage)) != whole for word in own):
        return []
    if not is_titled(name) and re.search(rf"\b(?:{'|'.join(TITLES_OF_PEOPLE)})\.? {own[0]}\b", passage):
        return []
    found: list[str] = []
    for other in sorted(names, key=lambda other: (-len(other), other)):
        known = {word[:NICKNAME] for one in (name, *found) for word in own_words(one)}
        if is_titled(other) == is_titled(name) and not known & {word[:NICKNAME] for word in own_words(other)}:
            found += [other] if re.search(rf"\b{re.escape(other)}\b", passage) else []
    return found
