"""Which models the page can compare: the released one, and the stages of its training where they are to be had."""

import logging
import os
from pathlib import Path

from chat_model import Bot, load_bot

LOG = logging.getLogger("app")
RELEASED = "released"


def load_stages(released: Bot, model_id: str, stages: str) -> dict[str, Bot]:
    """Return a model for each name, the released one first.

    Args:
        stages: NAME=ID or NAME=ID@REVISION, separated by space; empty takes the folders in `stages` beside the model.
            A model that cannot be loaded is left out, and the log says so: the chat works without it.
    """
    found = {RELEASED: released}
    for entry in stages.split() or beside(model_id):
        name, _, place = entry.partition("=")
        place, _, revision = (place, "", "") if Path(place).exists() else place.partition("@")
        try:
            found[name] = load_bot(place, revision or None)
        except ValueError as error:
            LOG.warning("%s is not there to compare: %s", name, error)
    return found


def beside(model_id: str) -> list[str]:
    """Return NAME=FOLDER of the stages that a release has beside its model, the first stage first."""
    folder = Path(model_id).resolve().parent / "stages"
    if not os.path.isdir(model_id) or not folder.is_dir():
        return []
    return [f"{path.name}={path}" for path in sorted(folder.iterdir()) if (path / "config.json").is_file()]
