"""Rows that do not fit into memory: how that is told from other errors, and the same work again with fewer at once."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

T = TypeVar("T")

# As CUDA, HIP, XPU and MPS, cuBLAS and cuDNN, PyTorch's and C++'s allocators, the kernel, oneDNN and MKL say it.
# oneDNN gives no reason; a "primitive descriptor" that it cannot create is an operation that it does not have.
MESSAGES = re.compile(
    r"out[ _]?of[ _]?(\w+[ _])?memory|alloc_failed|(can't|cannot|could not|failed to|unable to) allocate"
    r"|not enough memory|memory (allocation|alloc) fail|bad_alloc|bad allocation|invalid buffer size"
    r"|could not (create|execute) a primitive(?! descriptor)|could not create a memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that fewer rows at once may help."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, (RuntimeError, OSError)):
        return False
    return should_reduce_batch_size(error) or MESSAGES.search(str(error)) is not None


def random_state() -> dict[str, torch.Tensor]:
    """Return the random state of the CPU, and of this process's accelerator if it has one, by device type."""
    state = {"cpu": torch.get_rng_state()}
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Go back to a random state, as far as this machine has the devices that it was taken from."""
    torch.set_rng_state(state["cpu"])
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


def until_it_fits(work: Callable[[], T], shrink: Callable[[], None]) -> T:
    """Do the work; where memory runs out, shrink what it holds at once and do it again from the same random state.

    `shrink` raises ValueError where that cannot be.
    """
    state = random_state()
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, whose traceback would keep the tensors of the failed work alive.
        shrink()
        clear_device_cache(garbage_collection=True)
        set_random_state(state)
