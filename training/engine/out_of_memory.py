"""Running out of memory: how it is told from other errors, and the random state from which a step is taken again."""

import re

import torch
from accelerate.utils.memory import should_reduce_batch_size

# As CUDA, HIP, XPU and MPS, cuBLAS and cuDNN, PyTorch's and C++'s allocators, the kernel, oneDNN and MKL say it.
# oneDNN gives no reason; a "primitive descriptor" that it cannot create is an operation that it does not have.
MESSAGES = re.compile(
    r"out[ _]?of[ _]?(\w+[ _])?memory|alloc_failed|(can't|cannot|could not|failed to|unable to) allocate"
    r"|not enough memory|memory (allocation|alloc) fail|bad_alloc|bad allocation|invalid buffer size"
    r"|could not (create|execute) a primitive(?! descriptor)|could not create a memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that smaller pieces may help."""
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
