"""What can be set of an evaluation; nothing here waits for torch."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class EvalConfig:
    """Settings of the stage `eval`."""

    output_dir: str = field(metadata={"help": "Folder of the results."})
    models: list[str] = field(metadata={"help": "NAME=FOLDER or NAME=HUB_ID for each, in the order of training."})
    data: str = field(
        default="",
        metadata={"help": "Folder of token shards, made by training.prepare_data, whose val split is scored."},
    )
    text: list[str] = field(
        default_factory=list, metadata={"help": "More text files to score, each read with the model's own tokenizer."}
    )
    stride: int = field(
        default=0, metadata={"help": "Tokens by which the window moves on in a long document; 0 is half the context."}
    )
    context: int = field(default=0, metadata={"help": "Longest input in tokens; 0 takes the model's own context."})
    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Tasks of lm-evaluation-harness: local stories_bits, stories_hero, or public by name."},
    )
    task_data: str = field(
        default="",
        metadata={"help": "Folder with files of blimp, lambada, arc_easy, piqa, hellaswag; empty: from the Hub."},
    )
    task_rows: int = field(
        default=0, metadata={"help": "Rows of each task, of blimp of each of its 67 paradigms; 0 takes all."}
    )
    num_prompts: int = field(default=200, metadata={"help": "Story prompts; 0 asks none."})
    num_turns: int = field(
        default=200, metadata={"help": "Questions about stories, as many of each kind; fewer of other later turns."}
    )
    questions: str = field(
        default="",
        metadata={"help": "File of questions with exact answers, such as questions.jsonl of training.prepare_chat."},
    )
    split: Literal["test", "dev"] = field(
        default="test", metadata={"help": "Split of the prompts; dev is for tuning."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the prompts."})
    temperature: float = field(
        default=0.7, metadata={"help": "Temperature of the sampled answers; each prompt is answered greedily, too."}
    )
    top_k: int = field(default=50, metadata={"help": "Likeliest tokens that a sampled answer draws from; 0 is all."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer in tokens, within the context."})
    batch_size: int = field(default=32, metadata={"help": "Prompts answered at once."})
    num_samples: int = field(
        default=3,
        metadata={
            "help": "Prompts whose answers the report shows, and held-out texts that the first model goes on from."
        },
    )
