"""Which commit of a Hub data set is read: one for all passes, tasks and machines of a run, whatever is pushed."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

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
