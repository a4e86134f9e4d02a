"""One of several processes of tests/test_collectives.py: takes a step of each run and writes down what was sent.

    python tests/collectives_worker.py CORPUS OUTPUT RUNS

RUNS is a JSON object: for each name the environment of the layout and the changed settings.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from test_pretrain import rows, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.engine import cost
from training.engine import optimizer as optimizer_module


class Sent(TorchDispatchMode):
    """Counts collectives, and the bytes of the larger of what goes in and comes out, by operation and type."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        sends = any(word in name for word in ("reduce", "gather", "broadcast", "alltoall"))
        if namespace in ("c10d", "_c10d_functional") and sends:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.nbytes)
            self.count[f"{name.strip('_')} {largest.dtype}"] += 1
            self.bytes[f"{name.strip('_')} {largest.dtype}"] += largest.nbytes
        return result


def measure(corpus: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what the second step sends, and how many matrices this process orthogonalizes in it.

    `whole_gradient` among the changes is the share of the memory that a whole gradient may take.
    """
    cost.WHOLE_GRADIENT = changes.pop("whole_gradient", 0.1)
    run = trainer(corpus, folder, **changes)
    windows = rows(corpus, packed=False)
    run.train_step(windows)
    orthogonalize, matrices = optimizer_module.orthogonalize, []

    def counted(stack: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        matrices.append(len(stack))
        return orthogonalize(stack, dtype)

    optimizer_module.orthogonalize = counted
    with Sent() as sent:
        loss, _, norm = run.train_step(windows)
    optimizer_module.orthogonalize = orthogonalize
    return {"sent": sent.count, "bytes": sent.bytes, "matrices": sum(matrices), "loss": loss, "norm": norm}


if __name__ == "__main__":
    corpus, output, runs = sys.argv[1:]
    torch.set_num_threads(1)
    found = {}
    for name, (variables, changes) in json.loads(runs).items():
        os.environ.update(variables)
        found[name] = measure(Path(corpus), Path(output), changes)
    (Path(output) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
