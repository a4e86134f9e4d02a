"""Tasks of lm-evaluation-harness by name: on the embedded stories, on files of benchmarks, or public ones of the Hub.

The tasks of `task_files` need no network, and with a folder of the data sets' own files those of `benchmark_files`
do not either; all others are downloaded by their name at the first use. Evaluation and pretraining call `run_tasks`.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.evaluation.task_scores import Scores, metrics_of, score_task

LOCAL = Path(__file__).parent / "task_files"
FROM_FILES = Path(__file__).parent / "benchmark_files"
SHORT = {"lambada": "lambada_openai"}  # the harness has two of them; this is the one that others report


def local_tasks(folder: Path) -> list[str]:
    """Return the names of the tasks that need no network."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


@functools.cache
def task_manager(*, public: bool, task_data: str = "", task_rows: int = 0) -> Any:
    """Return what knows the tasks; to look through all public ones takes half a minute.

    Raises:
        ValueError: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"--tasks needs lm-evaluation-harness; pip install 'hf_scratch[eval]' ({error}).") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about how it is called here
    folders = [str(LOCAL), str(FROM_FILES)] if task_data else [str(LOCAL)]
    metadata: Any = {"task_data": task_data, "task_rows": task_rows}
    return TaskManager(include_path=folders, include_defaults=public, metadata=metadata)


def find_tasks(tasks: Sequence[str], task_data: str = "", task_rows: int = 0) -> Any:
    """Return a manager that knows the tasks.

    Args:
        task_data: Folder of the benchmarks' files; empty takes the public tasks.
        task_rows: Rows of each local task, of BLiMP of each paradigm; 0 takes all.

    Raises:
        ValueError: lm-evaluation-harness is not installed or does not know one of them, or a file is missing.
    """
    known = local_tasks(LOCAL)
    if not task_data:
        manager = task_manager(public=not set(tasks) <= set(known), task_rows=task_rows)
        if unknown := [task for task in tasks if SHORT.get(task, task) not in manager.all_tasks]:
            raise ValueError(
                f"lm-evaluation-harness has no task {', '.join(unknown)}; the local ones are {', '.join(known)}, "
                "`lm_eval ls tasks` lists the others."
            )
        return manager
    files = local_tasks(FROM_FILES)
    if unknown := [task for task in tasks if SHORT.get(task, task) not in (*files, *known)]:
        raise ValueError(
            f"{', '.join(unknown)} cannot be read from files; {', '.join((*files, *known))} can, the others are "
            "downloaded where no task_data is given."
        )
    for task in tasks:
        task_files(task, task_data)
    return task_manager(public=False, task_data=task_data, task_rows=task_rows)


def task_files(task: str, task_data: str) -> list[str]:
    """Return the files that a task is read from, none if it is no benchmark.

    Raises:
        ValueError: A file is missing.
    """
    from training.evaluation.benchmark_files.file_rows import FILES, find_files

    task = SHORT.get(task, task)
    return [str(path) for path in find_files(task, task_data)] if task in FILES else []


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int,
    batch_size: int,
    task_data: str = "",
) -> dict[str, Scores]:
    """Return each task's metrics: value, 95 % interval, standard error and chance, and the rows.

    The random state is left as it was.

    Args:
        limit: Rows of each task, of BLiMP of each paradigm; 0 takes all.
        batch_size: Prompts at once where text is generated.
        task_data: Folder of the benchmarks' files; empty takes the public tasks.

    Raises:
        ValueError: A task cannot be found, or its data cannot be read.
    """
    manager = find_tasks(tasks, task_data, limit)
    from training.evaluation.likelihoods import BatchedLM

    model_of_harness = BatchedLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        # Tasks of files cut themselves: a limit would take BLiMP's first paradigm alone.
        found = _ask(model_of_harness, tasks, manager, None if task_data else limit or None)
    except (OSError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        advice = "" if task_data else "; is the Hub within reach?"
        raise ValueError(f"the tasks {', '.join(tasks)} could not be run ({reason}){advice}") from error
    groups = found.get("group_subtasks", {})
    inside = {name for names in groups.values() for name in names}
    results = {}
    for name in (name for name in found["results"] if name not in inside):
        samples = [row for part in groups.get(name) or [name] for row in found["samples"].get(part, [])]
        results[name] = score_task(found["results"][name], samples)
    return results


def _ask(model: Any, tasks: Sequence[str], manager: Any, limit: int | None) -> Any:
    """Return what the harness finds, as its `simple_evaluate`, which seeds all and answers the first process alone."""
    from lm_eval.evaluator import evaluate

    loaded = manager.load([SHORT.get(task, task) for task in tasks])
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
        task.set_fewshot_seed(1234)
    return evaluate(model, loaded, limit=limit, bootstrap_iters=0)


def tasks_to_follow(
    tasks: Sequence[str], rows: int, task_data: str
) -> Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]] | None:
    """Return what scores a model in training by one figure a task, its accuracy if it has one; None of no tasks.

    Raises:
        ValueError: As `find_tasks`, before the training begins.
    """
    if not tasks:
        return None
    find_tasks(tasks, task_data, rows)

    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        found = run_tasks(model, tokenizer, tasks, rows, 16, task_data)
        every = {name: metrics_of(scores) for name, scores in found.items()}
        return {name: (own.get("acc") or next(iter(own.values())))["value"] for name, own in every.items()}

    return score
