"""Show a run on one page, or compare several: results, curves, samples, data, time and settings.

    python -m training.report runs/quickstart
    python -m training.report runs/a runs/b --output_dir runs/compared

Writes `report.html`, which opens from the disk without a network, and `report.md` with the results alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.markdown import paired_table, results_table
from training.evaluation.page import evaluation, records, run_names, write_page
from training.stage.record import command


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, each with a folder for each stage")
    parser.add_argument("--output_dir", type=Path, help="where to write; default: the run, of several their parent")
    args = parser.parse_args(argv)
    for run in args.runs:
        if not records(run):
            raise ValueError(f"{run} is no run: it has no folder of a stage with a stage.json; check the path.")
    folder = args.output_dir or (args.runs[0] if len(args.runs) == 1 else args.runs[0].resolve().parent)
    folder.mkdir(parents=True, exist_ok=True)
    content = markdown(args.runs)
    (folder / "report.md").write_text(content, encoding="utf-8")
    page = write_page(args.runs, folder / "report.html")
    print(f"{content}\nreport: {folder / 'report.md'} and {page}")


def markdown(runs: Sequence[Path]) -> str:
    """Return the results of the runs as Markdown, with all their models side by side."""
    models: dict[str, Any] = {}
    parts = []
    for run, name in zip(runs, run_names(runs), strict=True):
        results = evaluation(run)
        label = f"{name}: " if len(runs) > 1 else ""
        models |= {label + model: measured for model, measured in results.get("models", {}).items()}
        if paired := paired_table(results):
            parts.append(f"## {label}What each stage changed\n\n{paired}")
    return "\n\n".join(["# Results", results_table(models) if models else "Not evaluated yet.", *parts]) + "\n"


if __name__ == "__main__":
    main()
