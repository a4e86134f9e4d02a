"""What a text has in common with the training text, and what a base model's samples are beside it."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_tokenizer_and_data
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from hf_scratch.bits_per_byte import encode
from training.evaluation import by_heart, text_samples
from training.evaluation.anchors import ANCHORS, anchor_rows, find_anchors, text_seen
from training.evaluation.answers import Answer
from training.evaluation.benchmark_files.file_rows import FILES
from training.evaluation.by_heart import Shared, look_up
from training.evaluation.figures import figure, number
from training.evaluation.markdown import write_report
from training.evaluation.samples import agreement_rows
from training.evaluation.task_scores import task_score
from training.evaluation.text_samples import sample_text

PLANTED = "“The old clock,” he said,\nstruck THIRTEEN; and nobody didn’t laugh-out loud at the café."


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


# ---- what stands in the training text ----


def test_a_planted_passage_is_found_word_for_word(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    documents = ["some other text", f"It was late. {PLANTED} Then it was still.", "the end"]
    training = encode(tiny_tokenizer, documents)
    copied = "zounds the old clock he said struck thirteen and nobody didn't laugh out loud at the cafe zounds"
    fresh = "quite different words than these nowhere"
    (found, none), read = look_up([copied, fresh], training.tokens, tiny_tokenizer, quoted=2)
    assert found.words == 16 and f"“{found.passage}." == " ".join(PLANTED.split())
    assert found.grams == 9 / 11  # of 18 words the first and the last stand nowhere
    assert none == Shared(words=0, passage="", grams=None)
    assert read["words"] == sum(len(document.split()) for document in documents)
    assert read["share"] == 1 and read["tokens"] == len(training.tokens)


def test_a_fresh_text_shows_nothing_and_a_copy_all(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    text = "one two three four five six seven eight nine ten"
    training = encode(tiny_tokenizer, ["ten nine eight seven six five four three two one", text])
    backwards = "ten eight six four two one three five seven nine"
    (copy, fresh), _ = look_up([text, backwards], training.tokens, tiny_tokenizer, quoted=0)
    assert (copy.words, copy.grams) == (10, 1) and (fresh.words, fresh.grams) == (2, 0)
    assert copy.passage == ""  # not asked for


def longest_by_hand(text: list[str], documents: list[list[str]]) -> int:
    def stands(run: list[str]) -> bool:
        return any(run == d[i : i + len(run)] for d in documents for i in range(len(d) - len(run) + 1))

    ends = range(len(text) + 1)
    return max((end - start for end in ends for start in range(end) if stands(text[start:end])), default=0)


@pytest.mark.parametrize(("piece", "overlap"), [(2**18, 2**11), (40, 200)])
def test_what_is_found_is_what_a_search_by_hand_finds(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, piece: int, overlap: int
) -> None:
    monkeypatch.setattr(by_heart, "PIECE", piece)
    monkeypatch.setattr(by_heart, "OVERLAP", overlap)
    rng = random.Random(0)
    documents = [rng.choices("ab cd ef gh".split(), k=rng.randint(1, 60)) for _ in range(8)]
    texts = [rng.choices("ab cd ef gh xy".split(), k=rng.randint(0, 25)) for _ in range(9)] + [documents[3][:30]]
    training = encode(tiny_tokenizer, [" ".join(words) for words in documents])
    found, read = look_up([" ".join(words) for words in texts], training.tokens, tiny_tokenizer, quoted=len(texts))
    for words, one in zip(texts, found, strict=True):
        grams = [longest_by_hand(words[i : i + 8], documents) == 8 for i in range(len(words) - 7)]
        assert one.words == longest_by_hand(words, documents) == len(one.passage.split())
        assert one.passage in " ".join(words)
        assert one.grams == (pytest.approx(sum(grams) / len(grams)) if grams else None)
    assert read["words"] == pytest.approx(sum(map(len, documents)), rel=0.1)


def test_of_a_large_training_text_a_share_is_read(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_heart, "PIECE", 100)
    monkeypatch.setattr(by_heart, "PIECES", 3)
    training = encode(tiny_tokenizer, ["over and over again " * 300])
    (found,), read = look_up(["over and over"], training.tokens, tiny_tokenizer, quoted=1)
    assert found.words == 3 and 0 < read["share"] < 0.5
    assert read["words"] == pytest.approx(1200, rel=0.1)


# ---- samples ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    make_tokenizer_and_data(run)
    return run


def sampled(run: Path, model: ScratchForCausalLM, seed: int = 0) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    found = sample_text(model, tokenizer, run / "data", beginnings=2, seed=seed)
    del found["training_text"]["seconds"]
    return found


def test_samples_come_again_and_change_no_other_draw(
    run: Path, make_model: Callable[..., ScratchForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_samples, "TOKENS", 24)
    model = make_model(max_position_embeddings=256)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sampled(run, model)
    assert torch.equal(torch.rand(3), expected)
    assert sampled(run, model) == first != sampled(run, model, seed=1)  # after other draws
    assert [one["temperature"] for one in first["samples"]] == [0.5, 0.8, 1.0] * 3
    beginnings = [one["prompt"] for one in first["samples"][::3]]
    assert beginnings[0] == "" and [len(words_of(text)) for text in beginnings[1:]] == [12, 12]
    for one in first["samples"]:
        # Drawn by chance a few letters make a word of the text, but held-out stories are told alike.
        assert one["in_training"]["words"] <= one["held_out"]["words"] + 3
    assert len({one["text"] for one in first["samples"]}) == 9


def test_a_model_that_recites_is_caught(
    run: Path, make_model: Callable[..., ScratchForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    shards = (run / "data" / "train.bin").read_bytes()
    recited = tokenizer.decode(memoryview(shards).cast("H")[1:100].tolist()).rpartition(" ")[0]
    monkeypatch.setattr(text_samples, "write", lambda *_: [Answer(recited, 99, False)] * 3)
    written = sampled(run, make_model(max_position_embeddings=256))
    for one in written["samples"]:
        assert one["in_training"]["words"] == len(by_heart.WORD.findall(recited)) and one["in_training"]["grams"] == 1
        assert one["in_training"]["passage"] in " ".join(recited.split())
        assert one["held_out"]["words"] < one["in_training"]["words"]
    header, (longest, grams) = agreement_rows(written)
    assert header[1:] == ["temperature 0.5", "temperature 0.8", "temperature 1.0", "held-out text"]
    assert grams[1:4] == ["100.0 %"] * 3 and float(longest[1]) > float(longest[4])


# ---- what others publish ----


def scores(*tasks: str) -> dict[str, Any]:
    found = {"value": 0.5, "low": 0.4, "high": 0.6, "stderr": 0.05}
    return {"base": {"parameters": 6_900_000, "tasks": {task: {"rows": 9, "acc": found} for task in tasks}}}


def test_only_tasks_that_were_scored_are_set_beside_others(tmp_path: Path) -> None:
    assert find_anchors(scores()) == find_anchors(scores("stories_hero")) == []
    models = scores("piqa", "stories_hero")
    models["base"]["seen"] = {"words": 12_800_000, "passes": 0.5}
    anchors = find_anchors(models)
    assert {task for anchor in anchors for task in anchor["accuracy"]} == {"piqa"}
    header, rows = anchor_rows(models, anchors)
    assert header == ["", "text seen", "parameters", "piqa, acc"]
    assert rows[0] == ["base", "12.8M words × 0.5", "6.9M", "50.0 % (40.0 to 60.0)"]
    assert len(rows) == 1 + len(anchors) and all(row[-1].endswith(" %") for row in rows[1:])
    models["base"]["tasks"]["lambada_openai"] = {"rows": 9, "acc": {"value": 0.02, "low": 0.0, "high": 0.03}}
    anchors = find_anchors(models)
    assert anchor_rows(models, anchors)[1][0][-1] == "2.0 % (0.0 to 3.0)"  # in percent, as the others'
    results = {"models": models, "curves": [], "prompts": None, "samples": [], "anchors": anchors}
    write_report(results, tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    for anchor in anchors:
        assert f"| {anchor['model']} |" in report and all(f"<{source}>" in report for source in anchor["source"])
    assert "LSTM" not in report  # which was scored on BLiMP alone


def test_every_published_figure_says_where_it_was_read() -> None:
    anchors = json.loads(ANCHORS.read_text())
    assert len({anchor["model"] for anchor in anchors}) == len(anchors)
    for anchor in anchors:
        assert anchor["accuracy"].keys() <= FILES.keys() and all(
            1 < value < 100 for value in anchor["accuracy"].values()
        )
        assert anchor["source"] and all(source.startswith("https://") for source in anchor["source"])


def test_the_text_that_a_model_saw_is_known_of_pretraining_on_it_alone() -> None:
    record = {"stage": "pretrain", "config": {}, "inputs": {"data": {"sha256": "ab"}}, "metrics": {"tokens": 300}}
    text = {"tokens": 100, "words": 70}
    assert text_seen(record, "ab", text) == {"words": 70, "passes": 3}
    assert text_seen(record, "cd", text) is None and text_seen({}, "ab", text) is None
    assert text_seen(record | {"config": {"init_from": "gpt2"}}, "ab", text) is None


# ---- figures ----


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.12345, "0.1235"), (142.43, "142.4300"), (38065.2, "38k"), (3.03e6, "3.0M"), (math.e**50, "5.2e+21")],
)
def test_a_large_figure_is_written_in_short(value: float, written: str) -> None:
    assert figure(value) == written
    assert task_score({"value": value, "low": None, "high": None}) == written
    assert len(number(-(10.0**30))) < 10
