"""Tasks of lm-evaluation-harness by name: on the embedded stories, on files of benchmarks, or public ones of the Hub.

The tasks of `task_files` need no network, and with a folder of the data sets' own files those of `benchmark_files`
do not either; all others are downloaded by their name at the first use. Evaluation and pretraining call `run_tasks`.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.evaluation.statistics import Z_95, rate, wilson

LOCAL = Path(__file__).parent / "task_files"
FROM_FILES = Path(__file__).parent / "benchmark_files"
SHORT = {"lambada": "lambada_openai"}  # the harness has two of them; this is the one that others report
Scores = dict[str, Any]


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
    from lm_eval import simple_evaluate

    from training.evaluation.likelihoods import BatchedLM

    try:
        found: Any = simple_evaluate(
            model=BatchedLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[SHORT.get(task, task) for task in tasks],
            task_manager=manager,
            limit=None if task_data else limit or None,  # tasks of files know it themselves
            bootstrap_iters=1000,
            random_seed=None,  # type: ignore[arg-type]
            numpy_random_seed=None,  # type: ignore[arg-type]
            torch_random_seed=None,  # type: ignore[arg-type]
        )
    except (OSError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        advice = "" if task_data else "; is the Hub within reach?"
        raise ValueError(f"the tasks {', '.join(tasks)} could not be run ({reason}){advice}") from error
    assert found is not None, "only other processes than the first get nothing"
    groups = found.get("group_subtasks", {})
    inside = {name for names in groups.values() for name in names}
    results = {}
    for name, scores in found["results"].items():
        if name not in inside:
            samples = [row for part in groups.get(name) or [name] for row in found["samples"].get(part, [])]
            results[name] = _scores(scores, samples)
    return results


def _scores(scores: Scores, samples: list[Scores]) -> Scores:
    """Return the metrics without the filter in their names, `acc,none` for example."""
    if samples and {"UID", "field"} <= samples[0]["doc"].keys():
        return {"rows": len(samples)} | _by_paradigm(samples)
    values = {key.partition(",")[0]: value for key, value in scores.items() if isinstance(value, int | float)}
    found: Scores = {"rows": len(samples)}
    for name in values:
        if name.endswith("_stderr") or name in ("sample_len", "sample_count"):
            continue
        outcomes = [row.get(name) for row in samples]
        value, stderr = values[name], values.get(f"{name}_stderr")
        if outcomes and set(outcomes) <= {0, 1}:
            low, high = wilson(sum(outcomes), len(outcomes))
        else:
            low, high = (None, None) if stderr is None else (value - Z_95 * stderr, value + Z_95 * stderr)
        found[name] = {"value": value, "stderr": stderr, "low": low, "high": high}
        choices = [len(row["resps"]) for row in samples]
        if name in ("acc", "acc_norm") and choices and min(choices) > 1:
            found[name]["chance"] = sum(1 / count for count in choices) / len(choices)
    return found


def _by_paradigm(samples: list[Scores]) -> Scores:
    """Return BLiMP's accuracy: the mean of its paradigms, as of each field's.

    A tie is wrong here; the harness's own score, which takes the first of equal sentences, counts it as right.
    The interval is Wilson's for as many rows, which is a little too wide for a mean of paradigms, never too narrow.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for row in samples:
        good, bad = (likelihood for likelihood, _ in row["filtered_resps"])
        field = row["doc"]["field"].replace("_", "-").replace("/", "-")
        right.setdefault(field, {}).setdefault(row["doc"]["UID"], []).append(good > bad)
    paradigms = {name: outcomes for field in sorted(right) for name, outcomes in sorted(right[field].items())}
    every = {name: _as_metric(rate(sum(one), len(one))) for name, one in paradigms.items()}

    def mean(names: Sequence[str]) -> Scores:
        rows = sum(len(paradigms[name]) for name in names)
        value = sum(every[name]["value"] for name in names) / len(names)
        low, high = wilson(value * rows, rows)
        return {"value": value, "stderr": (high - low) / (2 * Z_95), "low": low, "high": high, "chance": 0.5}

    fields = {field: mean(list(right[field])) for field in sorted(right)}
    return {"acc": mean(list(every)), "fields": fields, "paradigms": every}


def _as_metric(found: Scores) -> Scores:
    return {"value": found["rate"], "low": found["low"], "high": found["high"], "rows": found["n"], "chance": 0.5}


def metrics(scores: Scores) -> dict[str, Scores]:
    """Return the metrics of a task by name, of BLiMP its fields after the whole."""
    own = {name: score for name, score in scores.items() if isinstance(score, dict) and "value" in score}
    return own | {f"acc of {name}": score for name, score in scores.get("fields", {}).items()}


def main_score(scores: Scores) -> float:
    """Return the figure by which a task is followed while a model trains: its accuracy if it has one."""
    found = metrics(scores)
    return float(found.get("acc", next(iter(found.values())))["value"])
