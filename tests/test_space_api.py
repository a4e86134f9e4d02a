"""The Space as programs meet it: its endpoints on loopback, alone, in a crowd, left behind and for a long time."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from running_space import Running, connect
from tiny_release import GREEDY


@pytest.mark.slow
def test_api_streams(running: Running) -> None:
    client = connect(running)
    # The page is updated 14 times a second: an answer that a fast machine gives within two of these is no test.
    for tokens in (200, 800, 2048):
        started = time.monotonic()
        job = client.submit("Hello", **GREEDY, max_new_tokens=tokens, api_name="/chat")
        updates, first = [], 0.0
        for update in job:
            updates.append(update)
            first = first or time.monotonic() - started
        print(f"\nat the client: first text after {first:.2f} s, all after {time.monotonic() - started:.2f} s")
        print(f"in the app: {updates[-1][1]}")
        texts = [text for text, _ in updates]
        assert len(set(texts)) > 1
        assert all(late.startswith(early) for early, late in zip(texts, texts[1:], strict=False))
        said = rf"{tokens} tokens · \d+ tokens/s · first after .* s · seed \d+ · cut .*"
        assert re.fullmatch(said, updates[-1][1])
        if len(set(texts)) > 2:
            break
    # More than one piece came before the end.
    assert len(set(texts)) > 2


@pytest.mark.slow
def test_api_gives_the_same_answer_for_a_seed_to_everybody(running: Running) -> None:
    def ask(seed: int) -> str:
        return connect(running).predict("Hello", temperature=1, seed=seed, max_new_tokens=50, api_name="/chat")[0]

    alone = [ask(seed) for seed in (1, 2, 3)]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, (1, 2, 3))) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"message": " "}, "message is empty"),
        ({"message": "x" * 4001}, "4,001 characters"),
        ({"system_prompt": "x" * 4001}, "4,001 characters"),
        ({"max_new_tokens": 10**6}, "longest answer is 1000000"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"seed": 2**70}, "seed is"),
        ({"history": [{"role": "user"}]}, "history is not"),
    ],
)
def test_api_refuses_with_a_sentence(running: Running, wrong: dict[str, Any], sentence: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=sentence) as error:
        connect(running).predict(**({"message": "Hello"} | wrong), api_name="/chat")
    assert "Traceback" not in str(error.value)


def join(running: Running, session: str) -> None:
    """Ask for a long answer as a browser would, without reading it."""
    functions = httpx.get(f"{running.url}/config").json()["dependencies"]
    (chat,) = (function["id"] for function in functions if function["api_name"] == "chat")
    data = ["Hello", [], "", 0, 0, 1, 1, 2000, 1]
    httpx.post(f"{running.url}/gradio_api/queue/join", json={"data": data, "fn_index": chat, "session_hash": session})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processor time from /proc")
def test_a_client_that_leaves_costs_nothing(running: Running) -> None:
    join(running, "leaver")
    with httpx.stream("GET", f"{running.url}/gradio_api/queue/data", params={"session_hash": "leaver"}) as stream:
        for line in stream.iter_lines():
            if "process_generating" in line:
                break
    time.sleep(1.5)
    assert processor_seconds(running.pid, during=1.5) < 0.5


@pytest.mark.slow
def test_twenty_at_once_get_their_own_answers_past_readers_who_do_not_read(running: Running) -> None:
    short = {"temperature": 1, "max_new_tokens": 40, "api_name": "/chat"}
    first = connect(running)
    alone = [first.predict("Hello", seed=seed, **short)[0] for seed in range(5)]
    for name in ("slow one", "slow two"):
        join(running, name)
    clients = [connect(running) for _ in range(20)]

    def ask(number: int) -> list[str]:
        return [text for text, _ in clients[number].submit("Hello", seed=number % 5, **short)]

    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        streams = list(pool.map(ask, range(20)))
    print(f"\n20 streams of 40 tokens in {time.monotonic() - started:.1f} s")
    assert [texts[-1] for texts in streams] == alone * 4
    for texts in streams:
        assert all(late.startswith(early) for early, late in zip(texts, texts[1:], strict=False))


@pytest.mark.long
def test_memory_is_flat_over_200_conversations(running: Running) -> None:
    process, client = psutil.Process(running.pid), connect(running)

    def talk(times: int) -> float:
        for seed in range(times):
            client.predict("Hello", seed=seed, max_new_tokens=4, api_name="/chat")
        return process.memory_info().rss / 2**20

    before = talk(50)
    after = talk(200)
    print(f"\n{before:.0f} MiB after 50 conversations, {after:.0f} after 250")
    assert after < before + 25


@pytest.mark.slow
def test_every_endpoint_is_named_and_answers(running: Running) -> None:
    client = connect(running)
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/chat", "/compare", "/look_inside", "/training"
    }  # fmt: skip
    seen = client.predict("Once upon a time", api_name="/look_inside")
    assert len(seen["next"]) == 10 and seen["tokens"][0]["surprise"] is None
    both = client.predict("Hello", max_new_tokens=8, seed=1, api_name="/compare")
    assert both["models"] == ["released", "sft"] and both["answers"][0] != both["answers"][1]
    assert client.predict(api_name="/training")["stages"]["pretrain"]["metrics"]


@pytest.mark.slow
def test_it_is_an_mcp_server(running: Running) -> None:
    pytest.importorskip("mcp", reason="pip install 'gradio[mcp]'")
    schema = httpx.get(f"{running.url}/gradio_api/mcp/schema").json()
    assert {tool["name"] for tool in schema} == {"chat", "compare_models", "look_inside", "training_record"}


def processor_seconds(pid: int, during: float) -> float:
    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(during)
    return used() - before
