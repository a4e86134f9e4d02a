"""Where clicks become data: preference pairs and thumbs as JSON lines, in the shape that DPO and KTO trainers read.

A pair is `{"prompt": [messages], "chosen": [message], "rejected": [message], "meta": {...}}`, a thumb
`{"prompt": [messages], "completion": [message], "label": true, "meta": {...}}`. Ties prefer nothing, so they go into a
file of their own. Nothing is written without the visitor's consent.
"""

import json
import logging
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from huggingface_hub import CommitScheduler

LOG = logging.getLogger("app")
MINUTES_BETWEEN_COMMITS = 5
Pair = dict[str, Any]


class Preferences:
    """A folder of rows and, with a token and a data set's id, its copy on the Hub."""

    def __init__(self, folder: Path, dataset: str | None, token: str | None) -> None:
        self.folder, self.dataset, self.lock = folder, dataset if token else None, threading.Lock()
        if dataset and not token:
            LOG.warning("PREFERENCES_DATASET is set and HF_TOKEN is not: pairs stay in %s", folder)
        # A Space restarts with an empty disk: a file of its own keeps this process from replacing an older one.
        self.name = f"{time.strftime('%Y%m%d')}_{uuid.uuid4().hex[:8]}.jsonl"
        self.scheduler = None
        if self.dataset:
            folder.mkdir(parents=True, exist_ok=True)
            self.scheduler = start_pushing(folder, self.dataset, token)
            self.lock = self.scheduler.lock

    def save(self, kind: str, row: Pair) -> Path:
        """Append a row to this process' file of `pairs`, `ties` or `thumbs`."""
        path = self.folder / f"{kind}_{self.name}"
        with self.lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(as_line(row))
                file.flush()
                os.fsync(file.fileno())
        return path

    def push(self) -> None:
        """Push what was saved since the last time and wait for it; that it failed is in the log."""
        if self.scheduler:
            self.scheduler.trigger().exception()

    def consent(self, what: str) -> str:
        """Say what is kept, where and why."""
        where = "on the machine that runs this page"
        if self.dataset:
            where += f", and in the data set {self.dataset} on the Hugging Face Hub"
        return (
            f"If you tick the box, {what}. It is kept {where}, to train models. Nothing about you is saved; "
            "write nothing into a prompt that you would not publish. Without the tick nothing is saved."
        )


def start_pushing(folder: Path, dataset: str, token: str | None) -> CommitScheduler:
    """Copy the folder's rows to the data set from now on; it is made, private, if it is not there.

    Raises:
        ValueError: The Hub does not let this token write there.
    """
    try:
        return CommitScheduler(
            repo_id=dataset,
            repo_type="dataset",
            folder_path=folder,
            every=MINUTES_BETWEEN_COMMITS,
            private=True,
            token=token,
            allow_patterns=["pairs_*.jsonl", "ties_*.jsonl", "thumbs_*.jsonl"],
        )
    except Exception as error:  # each way of not reaching the Hub has its own exception
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"PREFERENCES_DATASET={dataset} cannot be written to: {reason}.") from error


def as_line(row: Pair) -> str:
    """Return a row as a line of JSON, in ASCII: some readers of lines also break them at Unicode's separators."""
    return json.dumps(row) + "\n"


def make_pair(prompt: str, system: str, chosen: str, rejected: str, meta: dict[str, Any]) -> Pair:
    """Return a preference pair."""
    before = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*before, {"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "meta": meta,
    }


def make_thumb(before: list[dict[str, str]], system: str, answer: str, up: bool, meta: dict[str, Any]) -> Pair:
    """Return a thumb on an answer to the messages before it."""
    first = [{"role": "system", "content": system}] if system else []
    completion = [{"role": "assistant", "content": answer}]
    return {"prompt": [*first, *before], "completion": completion, "label": up, "meta": meta}
