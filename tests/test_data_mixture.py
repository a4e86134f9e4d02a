"""Rows for training from several folders by weight, and from shards elsewhere or still being written."""

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.engine import mixture
from training.engine.batches import IGNORE, PackedDocuments, Windows
from training.engine.mixture import Mixture, StreamedWindows, data_inputs, open_data
from training.engine.token_shards import Joined, Shards, load_shards
from training.stage.files import write_json

CONTEXT = 8


def write_folder(folder: Path, shards: list[list[int]], first: int, finished: bool = True) -> None:
    """Write shards of documents of these lengths, whose tokens are `first` and on; 0 separates."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, lengths in enumerate([[CONTEXT], *shards]):
        starts = np.cumsum([0, *(length + 1 for length in lengths)])
        tokens = np.arange(first, first + starts[-1] + 1, dtype=np.uint16)
        tokens[starts] = 0
        first += len(tokens)
        write_shard(folder, "val" if number == 0 else f"train-{number - 1:05d}", tokens, starts[:-1])
    if finished:
        finish(folder, len(shards))


def write_shard(folder: Path, name: str, tokens: np.ndarray, starts: np.ndarray) -> None:
    tokens.tofile(folder / f"{name}.bin")
    np.save(folder / f"{name}.starts.npy", starts)
    facts = {"dtype": "uint16", "vocab_size": 60_000, "documents": len(starts), "bytes": 1, "tokens": len(tokens)}
    write_json(folder / f"{name}.json", facts)


def finish(folder: Path, shards: int) -> None:
    names = [f"train-{number:05d}" for number in range(shards)]
    counts = {"documents": 1, "bytes": 1, "tokens": 1}
    meta = {"dtype": "uint16", "vocab_size": 60_000, "val": counts, "train": counts | {"shards": names}}
    write_json(folder / "meta.json", meta)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 40))
def test_streams_that_are_joined_are_read_as_one(lengths: list[int], start: int, stop: int) -> None:
    streams = [np.array([*range(10 * i + 1, 10 * i + length), 0]) for i, length in enumerate(lengths)]
    whole = np.concatenate([*(stream[:-1] for stream in streams[:-1]), streams[-1]])
    joined = Joined(streams)
    assert len(joined) == len(whole) and joined[start:stop].tolist() == whole[start:stop].tolist()


def test_several_shards_are_one_stream_with_all_documents(tmp_path: Path) -> None:
    write_folder(tmp_path, [[3, 5], [4], [7, 2, 1]], first=1)
    shards = load_shards(tmp_path, "train")
    assert all(shards.tokens[s : s + 1] == 0 for s in shards.starts.tolist()) and len(shards.starts) == 6
    assert len(shards.tokens) == sum((3, 5, 4, 7, 2, 1)) + 6 + 1 and shards.tokens[len(shards.tokens) - 1 :] == [0]
    rows = PackedDocuments(shards, 8, seed=0)
    seen = [t for row in range(rows.order.length) for t in rows.batch(np.array([row]))["labels"].flatten().tolist()]
    assert sorted(t for t in seen if t != IGNORE) == sorted(shards.tokens[1 : len(shards.tokens)].tolist())


def stream_of(first: int, rows: int) -> Shards:
    """A stream of which windows of CONTEXT make `rows` rows."""
    tokens = np.arange(first, first + (rows + 1) * CONTEXT + 1)
    return Shards(tokens, np.array([0]), 1, 10**6)


@settings(max_examples=20)
@given(st.sampled_from([0.25, 0.5, 1.0, 2.0, 2.5]), st.integers(4, 12), st.integers(4, 12), st.integers(0, 3))
def test_an_epoch_goes_through_each_source_as_often_as_its_weight(
    weight: float, length: int, other: int, seed: int
) -> None:
    readers = [Windows(stream_of(0, 4 * length), CONTEXT, seed), Windows(stream_of(5000, other), CONTEXT, seed)]
    mixed = Mixture(readers, [weight, 1.0], seed)
    epochs = 4
    labels = mixed.batch(np.arange(epochs * mixed.order.length))["labels"]
    from_first = labels[:, 0] < 5000
    assert int((~from_first).sum()) == epochs * other
    assert int(from_first.sum()) == round(epochs * weight * 4 * length)
    # Windows move with the epoch of their source; counted by window, all of them come equally often.
    windows = Counter(((labels[from_first][:, 0] - 1) // CONTEXT).tolist())
    assert abs(sum(windows.values()) - epochs * weight * 4 * length) == 0


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_a_mixture_depend_on_their_number_alone(tmp_path: Path, packed: bool) -> None:
    write_folder(tmp_path / "a", [[5] * 40, [7] * 30], first=1)
    write_folder(tmp_path / "b", [[3] * 30], first=2000)
    entries = [f"{tmp_path / 'a'}=1.5", str(tmp_path / "b")]
    whole, held_out = open_data(entries, 16, 0, packed)
    assert len(held_out.starts) == 2
    rows = np.arange(64)
    expected = Counter(tuple(row) for row in tokens_of(whole, rows))
    # Two processes, each with its share in another order, and a third that begins in the middle.
    apart = [open_data(entries, 16, 0, packed)[0] for _ in range(2)]
    seen = [tuple(row) for rank in (1, 0) for row in tokens_of(apart[rank], rows[rank::2][::-1])]
    assert Counter(seen) == expected
    assert tokens_of(open_data(entries, 16, 0, packed)[0], rows[40:41])[0] in tokens_of(whole, rows)
    assert Counter(tuple(row) for row in tokens_of(open_data(entries, 16, 1, packed)[0], rows)) != expected


def tokens_of(reader: mixture.Rows, rows: np.ndarray) -> list[list[int]]:
    """Return the labels of each row without padding."""
    return [[t for t in row if t != IGNORE] for row in reader.batch(rows)["labels"].tolist()]


def test_shards_are_streamed_from_a_url(tmp_path: Path) -> None:
    write_folder(tmp_path, [[9] * 20, [1], [9] * 20], first=1)  # the second is too short for any row
    url = f"file://{tmp_path}"
    streamed, held_out = open_data([url], CONTEXT, 0, False)
    assert len(held_out.tokens) == CONTEXT + 2 and held_out.vocab_size == 60_000
    epoch = 2 * ((20 * 10) // CONTEXT - 1)
    first, second = (tokens_of(streamed, np.arange(begin, begin + epoch)) for begin in (0, epoch))
    for rows in (first, second):
        seen = [t for row in rows for t in row if t]
        assert len(rows) == epoch and len(seen) == len(set(seen))
    assert first != second
    again = StreamedWindows(url, CONTEXT, 0)
    assert tokens_of(again, np.array([epoch + 3, 5])) == [second[3], first[5]]


def test_training_can_begin_while_shards_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "POLL_SECONDS", 0.01)
    write_folder(tmp_path / "all", [[9] * 20, [9] * 20], first=1)
    whole = tokens_of(StreamedWindows(f"file://{tmp_path / 'all'}", CONTEXT, 0), np.arange(100))

    target = tmp_path / "growing"
    target.mkdir()
    names = sorted((path.name for path in (tmp_path / "all").iterdir()), key=lambda name: (name == "meta.json", name))
    arrived = threading.Event()

    def write() -> None:
        # Each file comes in two halves, the records last, as a slow writer leaves them.
        for name in sorted(
            names, key=lambda n: (n == "meta.json", n.split(".")[0] != "val", n.split(".")[0], n[-4:] == "json")
        ):
            content = (tmp_path / "all" / name).read_bytes()
            (target / name).write_bytes(content[: len(content) // 2])
            arrived.wait(0.02)
            (target / name).write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    reader = StreamedWindows(f"file://{target}", CONTEXT, 0)
    assert len(reader.held_out().tokens) == CONTEXT + 2
    assert tokens_of(reader, np.arange(100)) == whole
    writer.join()


def test_mistakes_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [[9] * 20], first=1)
    with pytest.raises(ValueError, match="weight must be a number above 0"):
        open_data([f"{tmp_path}/a=0", f"{tmp_path}/a"], CONTEXT, 0, False)
    with pytest.raises(ValueError, match="neither mixes with other data nor packs"):
        open_data([f"file://{tmp_path}/a"], CONTEXT, 0, True)
    with pytest.raises(ValueError, match="twice as long as a row of 4000 tokens"):
        StreamedWindows(f"file://{tmp_path}/a", 4000, 0).batch(np.array([0]))
    (tmp_path / "a" / "val.json").unlink()
    with pytest.raises(ValueError, match=r"holds no val\.json"):
        StreamedWindows(f"file://{tmp_path}/a", CONTEXT, 0).held_out()


def test_weights_count_for_the_fingerprint_of_a_run() -> None:
    assert data_inputs(["runs/a"]) == {"data": "runs/a"}
    assert data_inputs(["runs/a", "runs/b=0.5"]) == {"data": ["runs/a", "runs/b"], "weights": "1.0 0.5"}
    assert json.dumps(data_inputs(["s3://x/y=z"])) == '{"data": "s3://x/y=z"}'
