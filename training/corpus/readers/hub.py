"""Data sets on the Hub: their rows, and which commit is read: one for all tasks of a run, whatever is pushed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.corpus.recipe import Source

if TYPE_CHECKING:
    from datatrove.io import DataFolder

PINNED = "revisions.json"  # in the folder of the work, so that a run that goes on reads what it began with


@cache
def commit_of(dataset: str, revision: str | None = None) -> str | None:
    """Return the commit that a branch or tag of a data set stands for now; a folder, or what is offline, has none.

    Raises:
        ValueError: There is no such data set or revision.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(dataset).exists() or constants.HF_HUB_OFFLINE:
        return revision
    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"the data set {dataset} cannot be read from the Hub ({str(error).splitlines()[0]})."
        ) from None


def pin(sources: list[Source], folder: "DataFolder") -> list[Source]:
    """Return sources of which those on the Hub name a commit: the one that the work in the folder began with."""
    known = json.loads(folder.cat_file(PINNED)) if folder.isfile(PINNED) else {}
    pinned = [
        replace(source, revision=known.get(source.name) or commit_of(source.dataset, source.revision))
        if source.dataset
        else source
        for source in sources
    ]
    with folder.open(PINNED, "wb") as file:
        file.write(json.dumps({source.name: source.revision for source in pinned if source.dataset}).encode())
    return pinned


def read_data_set(
    dataset: str,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    share: tuple[int, int] = (0, 1),
    *,
    streaming: bool = True,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a data set with their numbers, from 0.

    Args:
        share: Which of how many shares is read: of its files, or of its rows where the files are fewer.
        streaming: Read rows while they are downloaded; else all are downloaded first, once, into the cache.

    Raises:
        ValueError: There is no such data set, subset, split or revision, or none that can be read.
    """
    from datasets import load_dataset

    number, of = share
    try:
        data = load_dataset(dataset, subset, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # each way of not being there has its own exception in the Hub stack
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the data set {dataset} has no split {split} that can be read ({reason}).") from None
    by_files = of > 1 and data.num_shards >= of
    for i, row in enumerate(data.shard(of, number) if by_files else data):
        if by_files or i % of == number:
            yield i, dict(row)
