"""Make a chat model's data from the books that a model was pretrained on: conversations, pairs, and questions.

    python -m training.prepare_chat --data runs/mine/data --tokenizer runs/mine/tokenizer --output_dir runs/mine/chat

Reads the text of the stage `data` back. Its training text gives `sft.jsonl` and `dpo.jsonl`, which training.sft and
training.dpo take as `--data`; its held-out text gives `questions.jsonl`, which training.eval_model takes as
`--questions`. So what is asked stands in no text that the model has learnt from, in no edition where the data was made
with the step `works`. Every answer is the book's own: how a passage goes on, who says something, which sentence comes
next. For English prose.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.corpus.split import DataSplit
from training.stage.config import parse_config
from training.stage.files import read_json
from training.stage.record import command, open_stage

# What takes long to import is imported where it is used.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.chat.books import Book
    from training.chat.formats import Row

    Rows = Iterator[tuple[str, Row]]  # of each its kind

SHORTEST = 128  # tokens of a row
ENOUGH = 100_000_000  # characters of books to make rows from; more are not read


@dataclass(kw_only=True)
class ChatConfig:
    """Settings of the stage `chat`."""

    output_dir: str = field(metadata={"help": "Folder of the rows."})
    data: str = field(metadata={"help": "Folder of token shards, made by training.prepare_data from books."})
    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer that made them."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a row, at most the model's context."})
    num_conversations: int = field(default=6000, metadata={"help": "Rows of sft.jsonl."})
    num_pairs: int = field(default=2000, metadata={"help": "Rows of dpo.jsonl."})
    num_questions: int = field(default=200, metadata={"help": "Rows of questions.jsonl of each of the four kinds."})
    seed: int = field(default=0, metadata={"help": "Seed of what is drawn."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(ChatConfig, argv, __doc__)
    if config.max_length < SHORTEST:
        raise ValueError(
            f"max_length={config.max_length} leaves no room for a passage and its answer; give at least {SHORTEST}."
        )
    stage = open_stage("chat", config, {"data": config.data, "tokenizer": config.tokenizer}, config.output_dir)
    if stage.done:
        return
    from hf_scratch.token_ids import load_encoder

    steps = read_json(Path(config.data) / "stage.json").get("config", {}).get("steps") or []
    if not any(step == "works" or "works" in step for step in steps):
        print(
            f"warning: {config.data} was made without the step works, so another edition of what is asked about may "
            "be in the training text; see training/corpus/README.md."
        )
    rows = make_rows(config, load_encoder(config.tokenizer))
    made = {name: write_rows(stage.folder / name, some) for name, some in rows.items()}
    if empty := [name for name, counts in made.items() if not counts.keys() - {"small talk"}]:
        raise ValueError(
            f"nothing can be asked about {config.data}, so {empty[0]} would be empty; it takes English prose in "
            f"paragraphs, some of it held out, that are short enough for max_length={config.max_length}."
        )
    stage.finish(made)


def make_rows(config: ChatConfig, tokenizer: "PreTrainedTokenizerBase") -> dict[str, "Rows"]:
    """Return the rows of each file, each with its kind."""
    from hf_scratch.tokenizer import Message, encode_chat
    from training.chat.book_rows import KINDS, Asker, pair, question

    def count(messages: list[Message]) -> int:
        return len(encode_chat(tokenizer, messages)[0])

    learnt = Asker(read_books(config, tokenizer, "train"), "train", config.seed, count, config.max_length)
    held_out = Asker(read_books(config, tokenizer, "val"), "test", config.seed, count, config.max_length)
    tasks = learnt.tasks(KINDS)  # one stream, so that no pair is about the place of a conversation of its kind
    sft = itertools.islice(tasks, config.num_conversations)
    dpo = itertools.islice(tasks, config.num_pairs)
    asked = [itertools.islice(held_out.stream(kind), config.num_questions) for kind in KINDS]
    return {
        "sft.jsonl": ((task.kind, learnt.conversation(task)) for task in sft),
        "dpo.jsonl": ((task.kind, pair(task)) for task in dpo),
        "questions.jsonl": ((task.kind, question(task)) for task in itertools.chain(*asked)),
    }


def read_books(config: ChatConfig, tokenizer: "PreTrainedTokenizerBase", split: DataSplit) -> list["Book"]:
    """Return the documents of one side of the data, in random order, each once, up to `ENOUGH` characters."""
    from hf_scratch.token_ids import refuse_other_tokenizer
    from training.chat.books import Book
    from training.engine.token_shards import load_shards

    shards = load_shards(Path(config.data), split)
    refuse_other_tokenizer(shards.tokenizer, tokenizer, config.data, print)
    texts: dict[str, None] = {}
    size = 0
    for number in np.random.default_rng(config.seed).permutation(len(shards.starts)).tolist():
        text = tokenizer.decode(shards.document(number).tolist(), clean_up_tokenization_spaces=False)
        texts[text] = None
        size += len(text)
        if size > ENOUGH:
            break
    print(f"{split}: {len(texts):,} documents, {size:,} characters", flush=True)
    return [Book(text) for text in texts]


def write_rows(path: Path, rows: "Rows") -> dict[str, int]:
    """Write a row a line, and return how many there are of each kind."""
    counts = Counter[str]()
    with path.open("w", encoding="utf-8") as file:
        for kind, row in rows:
            counts[kind] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in counts.items())
    print(f"{path.name}: {counts.total():,} rows: {kinds}", flush=True)
    return dict(counts)


if __name__ == "__main__":
    main()
