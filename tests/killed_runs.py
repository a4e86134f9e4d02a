"""Runs pretraining once to its end, and once killed again and again, in processes forked from this one.

    python tests/killed_runs.py WHOLE_ARGUMENTS KILLED_ARGUMENTS KILLS

The arguments are JSON lists for training.pretrain. The moments are drawn from the time that the whole run took, so
that they fall anywhere in the run, and prints the number of processes that were killed before their end.
"""

import json
import os
import random
import signal
import sys
import time

from training.pretrain import main


def start(arguments: list[str]) -> int:
    """Fork a process that runs the stage and return its id; its output is dropped."""
    if pid := os.fork():
        return pid
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        main(arguments)
    except BaseException:
        os._exit(1)
    os._exit(0)


def wait(pid: int) -> int:
    """Return how the process ended: its exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_until(arguments: list[str], kills: int, whole_s: float) -> int:
    """Start the run again after each kill, and let it finish after the last; return how many were killed."""
    moments = random.Random(0)
    for done in range(kills):
        pid = start(arguments)
        # A third of the run's length together: it is killed all along, and mostly before its end.
        time.sleep(moments.uniform(0.3, 1.7) * whole_s / 3 / kills + 0.1)
        os.kill(pid, moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        if wait(pid) == 0:
            return done
    if status := wait(start(arguments)):
        sys.exit(f"the last run ended with {status}")
    return kills


if __name__ == "__main__":
    started = time.perf_counter()
    if status := wait(start(json.loads(sys.argv[1]))):
        sys.exit(f"the undisturbed run ended with {status}")
    print(kill_until(json.loads(sys.argv[2]), int(sys.argv[3]), time.perf_counter() - started))
