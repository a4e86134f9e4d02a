"""How soon the Space answers on this machine, seen from outside: a process of `spaces_app/app.py` and `gradio_client`.

    python -m benchmarks.space runs/quickstart/release/model --output runs/benchmarks/space.json

Start is the time from the process' start until its page is served; the first text is counted from the moment at which
a client that is connected already sends a message, until it has some of the answer.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from gradio_client import Client

APP = Path(__file__).parent.parent / "spaces_app" / "app.py"
PROMPT = "Tell me a story about a fox named Pip who lost a red kite in the forest."
PATIENCE = 300  # seconds
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever proxy is set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of the model that the Space shows.")
    parser.add_argument("--rounds", type=int, default=5, help="Starts of the app.")
    parser.add_argument("--messages", type=int, default=10, help="Messages to each of them.")
    parser.add_argument("--output", type=Path, help="JSON file of everything measured.")
    options = parser.parse_args()
    starts, firsts = [], []
    for _ in range(options.rounds):
        start, found = measure(options.model, options.messages)
        starts.append(start)
        firsts += found
    machine = {"threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}
    print(f"{options.model}: {options.rounds} starts, {options.messages} messages each, {machine}")
    print(f"page served after {describe(starts, 1)} s")
    print(f"first text after {describe([1000 * first for first in firsts], 0)} ms")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        measured = machine | {"start_s": starts, "first_text_s": firsts}
        options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def describe(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} (median; {low:.{digits}f} to {high:.{digits}f})"


def measure(model: str, messages: int) -> tuple[float, list[float]]:
    """Start the app; return after how many seconds it served its page, and after how many each answer began."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MODEL_ID": model, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while not serves(url):
            if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                raise SystemExit("the app does not serve its page; what it printed says why")
            time.sleep(0.05)
        ready = time.perf_counter() - started
        client = Client(url, verbose=False)
        return ready, [first_text(client, seed) for seed in range(messages)]
    finally:
        process.terminate()
        process.wait(timeout=30)


def serves(url: str) -> bool:
    try:
        return DIRECT.open(url, timeout=10).status == 200
    except (urllib.error.URLError, OSError):
        return False


def first_text(client: Any, seed: int) -> float:
    """Send a message and return after how many seconds some text of the answer is there; stops the answer then."""
    started = time.perf_counter()
    job = client.submit(PROMPT, seed=seed, api_name="/chat")
    for text, _ in job:
        if text:
            break
    first = time.perf_counter() - started
    job.cancel()
    return first


if __name__ == "__main__":
    main()
