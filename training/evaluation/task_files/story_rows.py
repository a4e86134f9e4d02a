"""Rows of the local lm-evaluation-harness tasks, told by the stories' generator: no download, no file of data.

The YAML files beside this one name its functions; the rows are of the test split, which no model was trained on.
"""

import itertools
import random
import re
from typing import Any

from datasets import Dataset

from training.stories import world
from training.stories.tell import stories

ROWS = 200


def texts(task_rows: int = 0, **kwargs: Any) -> dict[str, Dataset]:
    """Stories to be read, for bits per byte."""
    told = itertools.islice(stories("test", 0), task_rows or ROWS)
    return {"test": Dataset.from_list([{"text": story.text} for story in told])}


def hero(task_rows: int = 0, **kwargs: Any) -> dict[str, Dataset]:
    """Stories without their last sentence, and four ways to end them, of which one names the right hero."""
    rng, rows = random.Random(0), []
    for story in stories("test", 0):
        name = story.request.name
        before, _, ending = story.text.rpartition(". ")
        if name and re.search(rf"\b{name}\b", before) and re.search(rf"\b{name}\b", ending):
            others = rng.sample([other for other in world.NAMES if other not in story.text], 3)
            choices = [re.sub(rf"\b{name}\b", other, ending) for other in (name, *others)]
            order = rng.sample(range(4), 4)
            rows.append({"query": before + ".", "choices": [choices[i] for i in order], "gold": order.index(0)})
        if len(rows) == (task_rows or ROWS):
            return {"test": Dataset.from_list(rows)}
    raise AssertionError("the stream of stories does not end")
