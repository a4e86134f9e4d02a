"""What is asked about books has true answers, and nothing of a book that is asked about was learnt from."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted import sentence
from transformers import PreTrainedTokenizerBase

from hf_scratch import train_tokenizer
from hf_scratch.tokenizer import encode_chat
from training.chat.book_rows import CAN_DO, HONEST, KINDS, TITLES, Asker, Task, other_names
from training.chat.books import Book, cut_sentences, read_prose, read_speech
from training.chat.rows import load_rows
from training.corpus.split import fraction_of
from training.dpo import main as dpo
from training.eval_model import main as eval_model
from training.evaluation.answers import Answer
from training.evaluation.questions import is_whole, read_questions
from training.prepare_chat import main as prepare_chat
from training.prepare_data import main as prepare_data
from training.pretrain import main as pretrain
from training.run import steps
from training.sft import main as sft
from training.stories import small_talk

NAMES = ("Tom", "Anna", "Mr. Brown", "Peter", "Lucy", "Miss Grey", "Oswald", "Martha")
VAL_FRACTION = 0.2
RECIPES = Path(__file__).parent.parent / "training" / "recipes"


def speech(rng: random.Random) -> str:
    """A paragraph in which one of four people speaks."""
    said, name = sentence(rng), rng.choice(NAMES)
    return f'"{said.removesuffix(".")}{"," if said.endswith(".") else ""}" said {name}, and {sentence(rng).lower()}'


def tell(rng: random.Random, parts: int = 60) -> str:
    """A book of made-up prose, a chapter's heading now and then."""
    found = []
    for number in range(parts):
        if number % 20 == 0:
            found.append(f"CHAPTER {number // 20 + 1}.")
        found += [" ".join(sentence(rng) for _ in range(3)), speech(rng), speech(rng)]
    return "\n\n".join(found)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """One that knows the words of the made-up books."""
    return train_tokenizer([tell(random.Random(i)) for i in range(4)], 900, show_progress=False)


@pytest.fixture(scope="module")
def book() -> Book:
    return Book(tell(random.Random(0), 200))


def asker(book: Book, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Asker:
    return Asker([book], "train", seed, lambda messages: len(encode_chat(tokenizer, messages)[0]), 256)


@pytest.fixture(scope="module")
def tasks(book: Book, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Task]]:
    """Requests of each kind about one book."""
    asked = asker(book, tokenizer)
    return {kind: [task for task, _ in zip(asked.stream(kind), range(60), strict=False)] for kind in KINDS}


def flat(text: str) -> str:
    return " ".join(text.split())


# ---- what is read of a book ----


@pytest.mark.parametrize(
    ("paragraph", "speaker", "said"),
    [
        ('"I will go home," said Tom.', "Tom", "I will go home"),
        ("“Where is it?” asked Mr. Brown, looking up.", "Mr. Brown", "Where is it?"),
        ('He stood up. "Never!" Anna cried.', "Anna", "Never!"),
        ('Miss Grey said, "It is late."', "Miss Grey", "It is late."),
        ('"I will go home," said he.', None, ""),
        ('"I will go home," said Tom and Anna.', None, ""),
        ('"I will go home," said Tom, Anna and all the others.', None, ""),
        ('"I will go home," said Tom\'s brother.', None, ""),
        ('"I will," said Tom, "go home."', None, ""),
        ('"I will go home." Tom went to the door.', None, ""),
        ('The sign "Keep out" said Tom was there.', None, ""),
        ("\"He told me 'go home' twice,\" said Tom.", None, ""),
    ],
)
def test_a_speaker_is_named_beyond_doubt_or_nobody_is(paragraph: str, speaker: str | None, said: str) -> None:
    found = read_speech(paragraph)
    assert (found.speaker, found.text) == (speaker, said) if found else speaker is None


@pytest.mark.parametrize(
    ("block", "prose"),
    [
        (
            "The boy went home over the hill and through the long dark wood,\nand slept.",
            "The boy went home over the hill and through the long dark wood, and slept.",
        ),
        ("   The boy went _home_.", "The boy went home."),
        ("CHAPTER IV.", None),
        ("Chapter Four. The Boy Goes Home.", None),
        ("THE BOY GOES HOME.", None),
        ("Twinkle, twinkle, little star,\nHow I wonder what you are!", None),
        ("[Illustration: The boy.]", None),
        ("and so the boy went home.", None),
        ("The boy went home", None),
        ('"The speech goes on in the next paragraph.', None),
        ("“The speech goes on in the next paragraph.", None),
        ("The boy went home over the hill and through the long dark wood\n    and slept\n    all night.", None),
    ],
)
def test_only_whole_paragraphs_of_prose_are_read(block: str, prose: str | None) -> None:
    assert read_prose(block) == prose


def test_sentences_end_where_a_reader_would_say_so() -> None:
    paragraph = 'Mr. Brown came in. "Stop! Go away!" Tom cried. "Why?" It was St. John\'s day.'
    assert cut_sentences(paragraph) == [
        "Mr. Brown came in.", '"Stop! Go away!" Tom cried.', '"Why?"', "It was St. John's day."
    ]  # fmt: skip


def test_a_heading_parts_what_stands_before_it_from_what_follows() -> None:
    found = Book("One day it rained. Tom slept.\n\nCHAPTER II.\n\nThe sun came out.")
    assert [[one.text for one in run] for run in found.runs] == [
        ["One day it rained.", "Tom slept."],
        ["The sun came out."],
    ]


def test_common_words_and_single_speakers_are_no_names(book: Book) -> None:
    assert set(NAMES) == book.names
    lines = ['"Yes, yes, yes," said Night.', "That night and every night it rained."] * 3 + ['"No, no," said Zed.']
    assert Book("\n\n".join(lines)).names == frozenset()


def test_who_is_named_in_two_forms_is_not_asked_about() -> None:
    names = {"Tom", "Anna", "Mr. Brown", "Miss Grey", "Steve", "Stephen"}
    assert other_names("Tom", "Tom saw Anna and Mr. Brown.", names) == ["Anna"]
    assert other_names("Mr. Brown", "Tom saw Mr. Brown and Miss Grey.", names) == ["Miss Grey"]
    assert other_names("Tom", "Tom Sawyer saw Anna. Tom ran.", names) == []
    assert other_names("Tom", "Master Tom saw Anna.", names) == []
    assert other_names("Steve", "Steve ran, and Stephen laughed.", names) == []


# ---- what is asked ----


def test_a_continuation_is_what_the_book_goes_on_with(book: Book, tasks: dict[str, list[Task]]) -> None:
    text = flat("\n\n".join(one.text for run in book.runs for one in run))
    wrong_ones = set()
    for task in tasks["continue"]:
        passage = next(part for part in re.split(r"\n\n|: ", task.asked, maxsplit=1) if flat(part)[:60] in text)
        begin = text.index(flat(passage)[:60])
        assert flat(task.answers[0]) in text[begin:] and flat(task.answers[0]) not in flat(task.asked)
        assert is_whole(task.answers[0], task.asked)
        assert task.wrong != task.answers[0]
        elsewhere = flat(task.wrong) in text and is_whole(task.wrong, task.asked)
        wrong_ones.add("elsewhere" if elsewhere else "refusal" if task.wrong == CAN_DO else "spoilt")
    assert wrong_ones == {"elsewhere", "spoilt", "refusal"}


def test_the_speaker_is_who_the_book_says_and_another_one_is_named(book: Book, tasks: dict[str, list[Task]]) -> None:
    assert len(tasks["speaker"]) == 60
    for task in tasks["speaker"]:
        name, other = task.answers[0].removesuffix("."), task.wrong.removesuffix(".")
        said = re.findall(r'"([^"]+)"', task.asked.replace('"?', '"'))
        assert any(f'"{one.rstrip(",")}," said {name}' in task.asked or f'"{one}" said {name}' in task.asked
                   for one in said)  # fmt: skip
        assert other in task.asked and other != name and {name, other} <= book.names
        assert task.chance is not None and 1 / len(NAMES) <= task.chance <= 1 / 2


def test_of_two_sentences_the_one_that_follows_in_the_book_is_right(book: Book, tasks: dict[str, list[Task]]) -> None:
    text = flat("\n\n".join(one.text for run in book.runs for one in run))
    firsts = 0
    for task in tasks["next"]:
        one, two = re.search(r"1\. (.*)\n\n2\. (.*)", task.asked).groups()  # type: ignore[union-attr]
        assert {one, two} == {task.answers[0], task.wrong} and task.chance == 0.5
        firsts += one == task.answers[0]
        passage = flat(task.asked.split("\n\n1. ")[0])
        before = (
            passage.split(" Which ")[0].split(" What comes ")[0].removeprefix("Which sentence follows this passage? ")
        )
        assert f"{before} {task.answers[0]}" in text and f"{before} {task.wrong}" not in text
    assert 15 < firsts < 45  # nothing is won by always naming the first


def test_what_is_no_request_gets_the_honest_sentence_of_this_model(tasks: dict[str, list[Task]]) -> None:
    for task in tasks["small talk"]:
        assert task.answers[0] in HONEST.values() and set(task.answers) == set(HONEST.values())
        assert small_talk.CAN_DO not in task.answers[0] and task.wrong not in task.answers


def test_rows_follow_from_the_seed_and_no_place_is_asked_twice(
    book: Book, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, list[Task]]
) -> None:
    def first(seed: int) -> list[Task]:
        return [task for task, _ in zip(asker(book, tokenizer, seed).tasks(KINDS), range(40), strict=False)]

    assert first(0) == first(0) != first(1)
    assert len({task.asked for task in tasks["next"]}) == len(tasks["next"])
    counted = [
        len(encode_chat(tokenizer, one.messages(said))[0]) for one in first(0) for said in (one.wrong, *one.answers)
    ]
    assert max(counted) <= 256


# ---- the stage ----


def changed(text: str, rng: random.Random) -> str:
    """Another edition: a twentieth of the words are others."""
    return re.sub(r"\b[a-z]+\b", lambda match: f"{match[0]}x" if rng.random() < 0.05 else match[0], text)


def make_data(folder: Path, tokenizer: PreTrainedTokenizerBase, data_steps: list[str]) -> None:
    """Write `folder/data` of thirty books, and of an edition of each of those whose own text would be held out."""
    rng = random.Random(0)
    texts = [tell(rng) for _ in range(30)]
    texts += [changed(text, rng) for text in texts if fraction_of(text) < VAL_FRACTION]
    assert len(texts) > 32
    (folder / "books").mkdir()
    for number, text in enumerate(texts):
        (folder / "books" / f"{number:02d}.txt").write_text(text)
    tokenizer.save_pretrained(folder / "tokenizer")
    sources = [{"name": "books", "files": str(folder / "books")}]
    recipe = {"sources": sources, "steps": data_steps, "val_fraction": VAL_FRACTION}
    recipe |= {"tasks": 1, "shards": 1, "workers": 1}
    (folder / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(folder / "tokenizer"), "--output_dir", str(folder / "data")]
    prepare_data(["--config", str(folder / "data.yaml"), *words])


def make_chat(folder: Path, *options: str) -> None:
    inputs = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer")]
    prepare_chat([*inputs, "--output_dir", str(folder / "chat"), "--max_length", "256", *options])


def strings(value: Any) -> Iterator[str]:
    """All texts in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from strings(entry)


def runs_of(texts: Iterator[str], number: int = 13) -> set[tuple[str, ...]]:
    """The runs of words of texts."""
    words = (re.findall(r"\w+", text.lower()) for text in texts)
    return {tuple(one[i : i + number]) for one in words for i in range(len(one) - number + 1)}


def runs_in(path: Path) -> set[tuple[str, ...]]:
    """The runs of words in the rows of a file, but for those of the honest sentence, which all files have."""
    rows = map(json.loads, path.read_text().splitlines())
    return runs_of(text for row in rows for text in strings(row)) - runs_of(iter(HONEST.values()))


FEW = ("--num_conversations", "120", "--num_pairs", "60", "--num_questions", "20")


@pytest.mark.slow
@pytest.mark.parametrize("data_steps", [["works"], []])
def test_no_edition_of_a_book_that_is_asked_about_is_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data_steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path, tokenizer, data_steps)
    make_chat(tmp_path, "--num_conversations", "1500", *FEW[2:])
    asked = runs_in(tmp_path / "chat/questions.jsonl")
    learnt = runs_in(tmp_path / "chat/sft.jsonl") | runs_in(tmp_path / "chat/dpo.jsonl")
    assert len(asked) > 1000
    if data_steps:
        assert not asked & learnt
    else:
        assert asked & learnt  # what the step is for
    assert ("without the step works" in capsys.readouterr().out) != bool(data_steps)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    make_data(folder, tokenizer, ["works"])
    make_chat(folder, *FEW)
    return folder


def test_the_rows_are_the_files_that_the_later_stages_read(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft = load_rows(["conversations"], str(made / "chat/sft.jsonl"), 0, 20, 0)
    assert (sft.format, len(sft.train), len(sft.held_out), sft.unused) == ("messages", 100, 20, set())
    lengths = {len(row["messages"]) for row in sft.train}
    assert lengths == {2, 4}  # in some the user says thank you
    dpo = load_rows(["preferences"], str(made / "chat/dpo.jsonl"), 0, 0, 0)
    assert (dpo.format, len(dpo.train), dpo.unused) == ("prompt, chosen and rejected", 60, set())
    questions = read_questions(str(made / "chat/questions.jsonl"))
    counts = json.loads((made / "chat/stage.json").read_text())["metrics"]["questions.jsonl"]
    assert counts == dict.fromkeys(KINDS, 20) and len(questions) == 80
    for question in questions:
        for text in question.answers:
            assert question.is_right(Answer(f" {text}", 9, True), set())
    capsys.readouterr()
    make_chat(made, *FEW)
    assert "nothing has changed, skipped" in capsys.readouterr().out


def test_what_cannot_be_asked_about_is_said(made: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "list.txt").write_text("\n\n".join(f"item {i}" for i in range(2000)))
    words = ["--tokenizer", str(made / "tokenizer"), "--output_dir", str(tmp_path / "data")]
    prepare_data([*words, "--files", str(tmp_path / "list.txt")])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SystemExit, match="max_length=64 leaves no room .*; give at least 128"):
        make_chat(tmp_path, "--max_length", "64")
    with pytest.raises(SystemExit, match="nothing can be asked about .*, so sft.jsonl would be empty"):
        make_chat(tmp_path)


def test_the_recipe_goes_on_from_the_books_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "pretrain/model").mkdir(parents=True)
    plan = {step.name: step.inputs for step in steps(RECIPES / "english", tmp_path, [])}
    assert list(plan) == ["chat", "sft", "dpo", "eval", "release"]
    chat = tmp_path / "chat"
    assert plan["sft"][-2:] == ["--data", str(chat / "sft.jsonl")]
    assert plan["dpo"][-2:] == ["--data", str(chat / "dpo.jsonl")]
    assert str(chat / "questions.jsonl") in plan["eval"]
    human = {step.name: step.inputs for step in steps(RECIPES / "human-chat", tmp_path, [])}
    assert list(human) == ["sft", "dpo", "eval"] and not any("--data" in human[name] for name in ("sft", "dpo"))


@pytest.mark.slow
def test_from_books_to_a_chat_that_is_measured_on_other_books(made: Path, tmp_path: Path) -> None:
    chat, tokens = made / "chat", ["--data", str(made / "data")]
    sizes = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --context_length 256 --batch_rows 2"
    words = [*sizes.split(), *"--max_steps 2 --eval_steps 2 --warmup_steps 0 --precision fp32".split()]
    pretrain([*tokens, "--tokenizer", str(made / "tokenizer"), "--output_dir", str(tmp_path / "pretrain"), *words])
    few = "--batch_size 4 --max_steps 1 --warmup_ratio 0 --log_steps 1 --max_length 256 --eval_examples 4".split()
    replay = ["--replay", str(made / "data"), "--replay_rows", "4"]
    for stage, before, rows, more in ((sft, "pretrain", "sft.jsonl", replay), (dpo, "sft", "dpo.jsonl", [])):
        name = rows.removesuffix(".jsonl")
        words = ["--model", str(tmp_path / before / "model"), "--data", str(chat / rows), *few, *more]
        stage(["--output_dir", str(tmp_path / name), *words])
        checked = json.loads((tmp_path / name / "stage.json").read_text())["data"]
        levels = {line["what"]: line["level"] for line in checked}
        for what in ("rows longer than max_length=256", "answers cut before their end token", "rows dropped"):
            assert levels[what] == ""
    models = [f"{name}={tmp_path / name / 'model'}" for name in ("sft", "dpo")]
    words = ["--questions", str(chat / "questions.jsonl"), "--num_prompts", "0", "--max_new_tokens", "4"]
    eval_model(["--output_dir", str(tmp_path / "eval"), *tokens, "--models", *models, *words])
    report = (tmp_path / "eval/report.md").read_text()
    for title in TITLES.values():
        assert f"| Questions: {title} | 0.0 %" in report
