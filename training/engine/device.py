"""What training computes with: the device, and the precision of its matrix products.

Weights, gradients and optimizer states are float32 in either precision. `bf16` is autocast: what is multiplied is
rounded to bfloat16 first, which is several times as fast where the hardware does it, and 20 to 100 times as slow where
it is emulated.
"""

import itertools
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from accelerate import PartialState
from torch.distributed.distributed_c10d import _get_default_store

from training.engine.config import Precision
from training.stage.files import write_json
from training.stage.record import Stage

T = TypeVar("T")
_works = itertools.count()  # of `on_main`, the same number on all processes
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Operations of a run on CPUs from which compiling pays: some ten minutes of two cores. It takes half a minute and
# saves a tenth of the time in float32, a third in bfloat16.
WORTH_COMPILING = 1e14


def resolve_precision(setting: Precision) -> Literal["fp32", "bf16"]:
    """Return the precision that a setting means on this machine. It is a rule: a timing may turn out otherwise."""
    if setting == "auto":
        return "bf16" if _has_native_bf16() else "fp32"
    return setting


def settle_precision(stage: Stage, setting: Precision) -> Literal["fp32", "bf16"]:
    """Return the precision of a run, which its record keeps: wherever it goes on, it goes on in that one."""
    here = resolve_precision(setting)
    settled: Literal["fp32", "bf16"] = stage.record.setdefault("precision", here)
    if os.environ.get("RANK", "0") == "0":
        write_json(stage.folder / "stage.json", stage.record)
        if settled != here:
            print(f"{stage.name}: goes on in {settled}, in which it began; precision auto is {here} here", flush=True)
        if settled == "bf16" and not _has_native_bf16():
            print(f"{stage.name}: bf16 is emulated on this machine, and slow; fp32 is not", flush=True)
    return settled


def _has_native_bf16() -> bool:
    """Whether the device that training will use multiplies bfloat16 in hardware.

    `torch.cuda.is_bf16_supported()` also says yes where it is emulated (before Ampere). On a CPU the products are
    oneDNN's, which may be told to use less than there is; torch knows of limits below AVX-512 only.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if torch.backends.mps.is_available() or not torch.backends.mkldnn.is_available():
        return False
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and limit.upper() not in ("AVX512_CORE", "AVX512_CORE_VNNI")


def settle_tf32(allowed: bool) -> Literal["fp32", "tf32"]:
    """Settle, and return, how a GPU multiplies what is float32 and not under autocast.

    TF32 rounds the factors to 10 bits behind the point, where bfloat16 has 7, and is several times as fast. Training
    allows it where it multiplies in bfloat16 as well, evaluation always. On other devices nothing changes: a CPU would
    take the setting for a leave to use bfloat16.
    """
    if not _has_tf32():
        return "fp32"
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    return "tf32" if allowed else "fp32"


def _has_tf32() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def settle_compile(setting: bool | None, operations: float, device: torch.device) -> tuple[bool, str]:
    """Return whether a run of so many floating-point operations is compiled, and why, for the log.

    On a CPU by a rule and not by a timing, which might turn out otherwise when the run is resumed: compiled layers
    round otherwise.

    Raises:
        ValueError: Compiling was asked for, and there is no C++ compiler that works.
    """
    if setting is False:
        return False, "not compiled"
    if device.type != "cpu":
        return True, "compiled"
    if setting is None and operations < WORTH_COMPILING:
        return False, "not compiled, which would take longer than it saves"
    # Compiled code is kept, and torch takes it again on a processor that lacks its instructions, where it crashes.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second, only here

    usual = default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{usual}_{torch.backends.cpu.get_cpu_capability()}"
    try:
        torch.compile(torch.neg, fullgraph=True)(torch.ones(8))
    except Exception as error:  # whatever is missing: the compiler, its headers, a folder to write to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if setting:
            raise ValueError(
                f"compile=true, but torch.compile does not work here ({reason}); install g++, or leave compile out."
            ) from None
        return False, f"not compiled, since torch.compile does not work here ({reason}); g++ would make it faster"
    return True, "compiled, for which the first step takes about half a minute"


def on_cpu() -> bool:
    """Whether training runs on CPUs: always without an accelerator, and on a Mac where there are several processes.

    accelerate has to be told: of several processes without a GPU it takes each for the only one.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is None or (device.type == "mps" and "LOCAL_RANK" in os.environ)


def memory_of_device(device: torch.device) -> int:
    """Return the bytes of memory that a device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def join_processes() -> PartialState:
    """Settle, before a trainer asks, which device this process has and which others there are.

    A process that no launcher started takes the first GPU: on several, Trainer would turn to `nn.DataParallel`, which
    TRL refuses.
    """
    if "LOCAL_RANK" not in os.environ and torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return PartialState(cpu=on_cpu())


def on_main(work: Callable[[], T]) -> T:
    """Do some work on the main process alone and return what it returned on all, which wait as long as it takes.

    In anything else that they do together GPUs give up after ten minutes, in which not every data set is hashed.
    """
    state = join_processes()
    if state.num_processes == 1:
        return work()
    store, key = _get_default_store(), f"on_main/{next(_works)}"
    if state.is_main_process:
        store.set(key, pickle.dumps(work()).hex())
    store.wait([key], timedelta(days=7))
    result: T = pickle.loads(bytes.fromhex(store.get(key).decode()))
    state.wait_for_everyone()  # the store may end with the main process
    return result


def say(text: str) -> None:
    """Print on the main process."""
    PartialState().print(text, flush=True)
