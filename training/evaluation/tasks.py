"""Tasks of lm-evaluation-harness by name: the local ones of `task_files`, and public ones such as hellaswag.

Local tasks need no network; public ones are downloaded by their name at the first use.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOCAL = Path(__file__).parent / "task_files"


def local_tasks() -> list[str]:
    """Return the names of the tasks that need no network."""
    return sorted(path.stem for path in LOCAL.glob("*.yaml"))


@functools.cache
def task_manager(*, public: bool) -> Any:
    """Return what knows the tasks; to look through all public ones takes half a minute.

    Raises:
        ValueError: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"--tasks needs lm-evaluation-harness; pip install 'hf_scratch[eval]' ({error}).") from None
    return TaskManager(include_path=str(LOCAL), include_defaults=public)


def find_tasks(tasks: Sequence[str]) -> Any:
    """Return a manager that knows the tasks.

    Raises:
        ValueError: lm-evaluation-harness is not installed, or does not know one of them.
    """
    manager = task_manager(public=not set(tasks) <= set(local_tasks()))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ValueError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}; the local ones are {', '.join(local_tasks())}, "
            "`lm_eval ls tasks` lists the others."
        )
    return manager


def run_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], limit: int, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Return each task's metrics: value, standard error and rows.

    Args:
        limit: Rows of each task; 0 takes all.

    Raises:
        ValueError: A task cannot be found, or its data cannot be read.
    """
    manager = find_tasks(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit or None,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except (OSError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the tasks {', '.join(tasks)} could not be run ({reason}); is the Hub within reach?"
        ) from error
    assert found is not None, "only other processes than the first get nothing"
    return {name: _metrics(scores, found["n-samples"][name]["effective"]) for name, scores in found["results"].items()}


def _metrics(scores: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the metrics without the filter in their names, `acc,none` for example."""
    values = {key.partition(",")[0]: value for key, value in scores.items() if isinstance(value, int | float)}
    names = [name for name in values if not name.endswith("_stderr") and name not in ("sample_len", "sample_count")]
    return {"rows": rows} | {name: {"value": values[name], "stderr": values.get(f"{name}_stderr")} for name in names}
