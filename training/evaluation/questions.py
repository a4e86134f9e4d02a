"""Questions from a file, such as those that `training.prepare_chat` makes of held-out books, and what counts as right.

    {"kind": "who speaks", "prompt": [{"role": "user", "content": "..."}], "answers": ["Tom."], "chance": 0.5}
    {"kind": "capitals", "prompt": "What is the capital of Peru?", "answers": ["Lima.", "Lima"]}

A prompt is text or messages. An answer is right if it is one of `answers` word for word. Where there is none it is to
be a whole text: one of ten words or more that ends by itself, with a sentence, and repeats neither itself nor its
prompt. What answers another question of the file, such as the sentence of a model that refuses, is none.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch.tokenizer import Message, encode_texts
from training.chat.books import ENDS
from training.chat.formats import check_messages
from training.corpus.readers.tables import read_table
from training.evaluation.answers import Answer, Asking, answer
from training.evaluation.statistics import rate

FEWEST = 10  # words of a whole text
SAME = 6  # words of a run that a whole text does not say twice, nor after its prompt
MARGIN = 8  # tokens: the words of a true answer may be cut into a few more than the tokenizer does
EXAMPLE = '{"kind": "capitals", "prompt": "What is the capital of Peru?", "answers": ["Lima.", "Lima"]}'


@dataclass(frozen=True)
class Question:
    """A conversation up to a user's turn, the answers that are right, and how often chance is; none may be known."""

    kind: str
    messages: list[Message]
    answers: tuple[str, ...]
    chance: float | None

    def is_right(self, said: Answer, other_answers: Set[str]) -> bool:
        """Whether this is one of the answers, or where there are none a whole text and no answer to something else."""
        text = said.text.strip()
        if self.answers:
            return text in self.answers
        return said.ended and text not in other_answers and is_whole(text, self.messages[-1]["content"])


Answered = list[tuple[Answer, bool]]


def is_whole(text: str, prompt: str) -> bool:
    """Whether a text comes to the end of a sentence and says nothing twice, nor what the prompt has said."""
    words = text.split()
    if len(words) < FEWEST or not ENDS.search(text):
        return False
    runs = [" ".join(words[i : i + SAME]) for i in range(len(words) - SAME + 1)]
    given = " ".join(prompt.split())
    return len(set(runs)) == len(runs) and not any(run in given for run in runs)


def read_questions(path: str) -> list[Question]:
    """Return the questions of a file, none if no file is named.

    Raises:
        ValueError: No such file, no question in it, or a row that is none.
    """
    questions = [_read_question(row, where) for where, row in read_table(path)] if path else []
    if path and not questions:
        raise ValueError(f"{path} is empty; expected rows like {EXAMPLE}.")
    return questions


def _read_question(row: Any, where: str) -> Question:
    try:
        if not isinstance(row, dict) or not {"kind", "prompt", "answers"} <= row.keys():
            raise ValueError("it has not kind, prompt and answers")
        kind, prompt, answers, chance = (row.get(key) for key in ("kind", "prompt", "answers", "chance"))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
            raise ValueError("its answers are no list of texts")
        if not isinstance(kind, str) or not (chance is None or (isinstance(chance, int | float) and 0 < chance < 1)):
            raise ValueError("its kind is no text, or its chance no number between 0 and 1")
        return Question(kind, check_messages(messages, "prompt"), tuple(one.strip() for one in answers), chance)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected {EXAMPLE}.") from None


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    how: Asking,
    *,
    sampled: bool,
) -> Answered:
    """Return the answer to each question, and whether it is right; none is awaited for longer than a true one."""
    said: dict[int, Answer] = {}
    for kind in dict.fromkeys(one.kind for one in questions):
        places = [i for i, one in enumerate(questions) if one.kind == kind]
        true = [text for i in places for text in questions[i].answers]
        limit = how.max_new_tokens
        if all(questions[i].answers for i in places):
            limit = min(limit, MARGIN + max(map(len, encode_texts(tokenizer, true))))
        asking = replace(how, max_new_tokens=limit)
        found = answer(model, tokenizer, [questions[i].messages for i in places], asking, sampled=sampled)
        said |= dict(zip(places, found, strict=True))
    every = {text for one in questions for text in one.answers}
    return [(said[i], one.is_right(said[i], every)) for i, one in enumerate(questions)]


def score_questions(questions: Sequence[Question], answered: Answered) -> dict[str, Any]:
    """Return the rate of right answers to questions of each kind, with its 95 % interval and what chance gives."""
    found = {}
    for kind in dict.fromkeys(one.kind for one in questions):
        of_kind = [(one, right) for one, (_, right) in zip(questions, answered, strict=True) if one.kind == kind]
        chances = [one.chance for one, _ in of_kind if one.chance is not None]
        found[kind] = rate(sum(right for _, right in of_kind), len(of_kind))
        found[kind]["chance"] = sum(chances) / len(chances) if len(chances) == len(of_kind) else None
    return found
