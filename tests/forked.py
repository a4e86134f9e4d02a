"""Runs a script in several processes that find each other, forked from one that has imported what takes long.

    python tests/forked.py NUMBER SCRIPT WORDS...

Prints how each of them ended, and fails if one did.
"""

import os
import runpy
import socket
import sys
import traceback

import torch

import training.engine.loop  # noqa: F401 - so that each process need not


def free_port() -> int:
    """Return a port that nothing listens to."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def start(rank: int, script: str) -> int:
    """Fork a process that runs the script, and return its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        runpy.run_path(script, run_name="__main__")
        status = 0
    except BaseException:  # whatever ends it, it may not go on as the process that it was forked from
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    number, script = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = [start(rank, script) for rank in range(number)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(f"the processes ended with {ended}")
    sys.exit(any(ended))
