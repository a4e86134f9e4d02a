"""The numbers of an evaluation: bits per byte, intervals, scores, and the files that a run of the stage leaves."""

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCardData
from tiny_run import make_base, make_tokenizer_and_data
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_scratch import ScratchForCausalLM
from hf_scratch.bits_per_byte import bits_per_byte, encode
from training import eval_model
from training.evaluation import tasks as lm_tasks
from training.evaluation.answers import Answer, Asking, answer, preference, read_answer, score, variety
from training.evaluation.measure import load, name_files, parse_models
from training.evaluation.statistics import bootstrap_ratio, jackknife, mcnemar, paired_difference, wilson
from training.evaluation.task_files import story_rows
from training.evaluation.tasks import run_tasks
from training.evaluation.text_bits import measure_text
from training.stories import world
from training.stories.checker import check
from training.stories.talk import TURNS, prompts
from training.stories.tell import Story, stories

CONTEXT, STRIDE = 16, 4
LENGTHS = (0, 1, 5, 15, 16, 17, 20, 33, 50)  # tokens of documents: none, shorter, equal to and longer than the context


@pytest.fixture(scope="module")
def stream() -> tuple[np.ndarray, np.ndarray]:
    """Documents of LENGTHS random tokens as the stage `data` stores them, and their starts."""
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.concatenate([[0], rng.integers(4, 320, n)]) for n in LENGTHS] + [[0]])
    starts = np.cumsum([0, *(n + 1 for n in LENGTHS[:-1])])
    return tokens.astype(np.uint16), starts


@torch.no_grad()
def naive_nats(model: ScratchForCausalLM, document: list[int]) -> float:
    """Score each token of a document (separator first) in a forward pass of its own."""
    nats, end = 0.0, CONTEXT
    for position in range(1, len(document)):
        if position > end:
            end = min(end + STRIDE, len(document) - 1)
        window = document[max(0, end - CONTEXT) : position]
        nats -= model(torch.tensor([window])).logits[0, -1].double().log_softmax(-1)[document[position]].item()
    return nats


def test_bits_per_byte_equals_one_token_at_a_time(
    tiny_model: ScratchForCausalLM, stream: tuple[np.ndarray, np.ndarray]
) -> None:
    tokens, starts = stream
    documents = [tokens[start : start + n + 1].tolist() for start, n in zip(starts, LENGTHS, strict=True)]
    expected = sum(naive_nats(tiny_model, document) for document in documents)
    for batch_tokens in (1, 40, 8192):
        found = bits_per_byte(tiny_model, tokens, starts, 1000, CONTEXT, "cpu", batch_tokens, STRIDE)
        assert found.tokens == sum(LENGTHS)
        assert found.nats_per_token == pytest.approx(expected / sum(LENGTHS), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(expected / math.log(2) / 1000, rel=1e-5)


def test_a_uniform_model_needs_the_bits_of_its_vocabulary(
    make_model: Callable[..., ScratchForCausalLM], stream: tuple[np.ndarray, np.ndarray]
) -> None:
    model = make_model().train()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    found = bits_per_byte(model, *stream, num_bytes=500, context=CONTEXT, device="cpu")
    assert found.bits_per_byte == pytest.approx(math.log2(320) * sum(LENGTHS) / 500, rel=1e-6)
    assert model.training


def test_a_stride_that_leaves_tokens_out_is_refused(
    tiny_model: ScratchForCausalLM, stream: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="stride=17 must be between 1 and the context of 16"):
        bits_per_byte(tiny_model, *stream, num_bytes=500, context=CONTEXT, device="cpu", stride=17)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17, 1998, p. 861, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(count: int, n: int, low: float, high: float) -> None:
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_right_answers_score_100_percent_and_wrong_ones_0() -> None:
    told = list(itertools.islice(stories("test", 0), 40))
    others = told[1:] + told[:1]

    def scored(answers: list[Story]) -> dict:
        checks = [check(asked.request, said.text) for asked, said in zip(told, answers, strict=True)]
        return score(checks, [Answer(said.text, 100, ended=True) for said in answers]) | preference(checks)

    right, wrong = scored(told), scored(others)
    happy = sum(story.happy for story in told)
    assert (right["followed"]["rate"], right["ended"]["rate"], right["tokens"]["mean"]) == (1, 1, 100)
    assert right["happy"]["count"] == right["happy_of_followed"]["count"] == happy and 0 < happy < 40
    assert (
        wrong["followed"]["rate"] == wrong["followed_sampled"]["rate"] == 0
        and wrong["happy_of_followed"]["rate"] is None
    )
    assert wrong["happy"]["count"] == happy


def test_mcnemar_is_the_exact_binomial_test() -> None:
    # 9 gained and 1 lost: 2 * (C(10, 0) + C(10, 1)) / 2**10.
    before = [False] * 9 + [True] + [True] * 5
    after = [True] * 9 + [False] + [True] * 5
    assert mcnemar(before, after) == {"gained": 9, "lost": 1, "n": 15, "p": pytest.approx(22 / 1024)}
    assert mcnemar(before, before)["p"] == 1
    assert mcnemar([False, True], [True, False])["p"] == 1


def test_bootstrap_intervals_hold_what_they_should() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        sizes = rng.integers(1, 9, 60).astype(float)
        low, high = bootstrap_ratio(sizes * rng.normal(3, 1, 60), sizes)
        held += low <= 3 <= high
    assert 0.90 <= held / 200 <= 0.99
    before, sizes = rng.normal(5, 1, 100), np.ones(100)
    found = paired_difference(before, before + 0.1, sizes)  # far smaller than the spread of either
    assert found == {key: pytest.approx(0.1) for key in ("difference", "low", "high")}


def test_variety_and_repetition_are_counted() -> None:
    said = [Answer("a b a b a b", 6, True), Answer("c d e f g", 5, True)]
    found = variety(said)
    assert found["distinct_1"]["mean"] == 7 / 11 and found["distinct_2"]["mean"] == 6 / 9
    assert found["repetition"]["mean"] == pytest.approx((1 - 2 / 3) / 2)
    silent = variety([Answer("", 1, True)] * 2)
    assert silent["repetition"]["mean"] == 0 and silent["distinct_1"]["low"] == silent["distinct_1"]["high"] == 1


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 50)
    found = jackknife(values.mean(), [(values.sum() - value) / 49 for value in values])
    half = 1.96 * values.std(ddof=1) / math.sqrt(50)
    assert (found["low"], found["high"]) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)


def test_the_interval_of_distinct_n_holds_what_other_prompts_would_give() -> None:
    rng = random.Random(0)

    def answers() -> list[Answer]:
        words = [rng.choices(range(300), k=rng.randint(1, 20)) for _ in range(60)]
        return [Answer(" ".join(map(str, row)), 1, True) for row in words]

    found = [variety(answers())["distinct_1"] for _ in range(100)]
    expected = sum(one["mean"] for one in found) / len(found)
    assert 0.9 <= sum(one["low"] <= expected <= one["high"] for one in found) / len(found) <= 1
    assert all(one["high"] - one["low"] < 0.2 for one in found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two models."""
    run = tmp_path_factory.mktemp("run")
    make_tokenizer_and_data(run)
    make_base(run, "base")
    make_base(run, "other", seed=1)
    return run


def evaluate(run: Path, output: Path, *names: str) -> dict:
    models = [f"{name}={run / name / 'model'}" for name in names]
    small = ["--num_prompts", "5", "--num_turns", "2", "--max_new_tokens", "12", "--num_samples", "2"]
    eval_model.main(["--output_dir", str(output), "--data", str(run / "data"), "--models", *models, *small])
    return json.loads((output / "results.json").read_text(), parse_constant=pytest.fail)


def test_evaluation_writes_numbers_report_and_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(run, tmp_path / "eval", "base", "other")
    assert list(results["models"]) == ["base", "other"]
    for measured in results["models"].values():
        assert measured["text"]["documents"] == 6
        assert measured["text"]["low"] < measured["text"]["bits_per_byte"] < measured["text"]["high"]
        assert measured["stories"]["followed"]["n"] == 5
        assert measured["stories"]["parts"].keys() == {"hero", "item", "place", "problem", "complete"}
        for kind in ("greedy", "sampled"):
            assert measured["turns"][kind].keys() == {"questions", *TURNS}
            assert {name: found["n"] for name, found in measured["turns"][kind].items()} == {
                name: len(world.QUESTIONS) if name == "questions" else 1 for name in measured["turns"][kind]
            }
    logged = json.loads((run / "base/metrics.jsonl").read_text().splitlines()[-1])
    assert results["models"]["base"]["text"]["bits_per_byte"] == pytest.approx(logged["val_bpb"], rel=1e-6)
    report = (tmp_path / "eval/report.md").read_text()
    assert f"{logged['val_bpb']:.4f}" in report and "0.0 % (0.0 to 43.4)" in report
    assert results["samples"][1]["prompt"] in report
    trained = json.loads((run / "base/stage.json").read_text())["precision"]
    assert f"- Precision: base in {'bf16 autocast' if trained == 'bf16' else 'fp32'}, other in " in report
    written = results["text_samples"]
    assert written["model"] == "base" and len(written["samples"]) == 3 * (1 + 2)
    assert results["models"]["base"]["seen"]["words"] == written["training_text"]["words"]
    assert "## What base writes by itself" in report and "| Runs of 8 words that stand in it | " in report
    assert (tmp_path / "eval/loss.png").read_bytes().startswith(b"\x89PNG")
    (pair,) = results["paired"]
    assert (pair["from"], pair["to"], pair["followed"]["p"]) == ("base", "other", 1)
    gap = [m["text"]["bits_per_byte"] for m in results["models"].values()]
    # An interval's documents have the bytes of their tokens, which is a little off for a tokenizer that cuts letters.
    assert pair["bits_per_byte"]["difference"] == pytest.approx(gap[1] - gap[0], rel=1e-6)
    said = [json.loads(line) for line in (tmp_path / "eval/answers.jsonl").read_text().splitlines()]
    assert len(said) == 2 * 2 * (5 + len(TURNS)) and said[0]["prompt"] == results["samples"][0]["prompt"]
    questions = [line for line in said if "turn" in line]
    assert [line["turn"] for line in questions[: len(TURNS)]] == list(TURNS)
    assert all(line["messages"][-1]["role"] == "user" and not line["right"] for line in questions)
    for title in ("Questions about a story answered exactly", "Honest where no story was asked for, sampled"):
        assert f"| {title} | 0.0 %" in report
    assert "| asked: what happened | 0.0 %" in report
    assert (
        "- other: the place is right: " in report
        and "- other: the question what happened is answered: 0.0 %" in report
    )
    assert "- base: " not in report
    card = ModelCardData(**yaml.safe_load((tmp_path / "eval/card_results.yaml").read_text()), model_name="base")
    assert {result.metric_type for result in card.eval_results} >= {"bits_per_byte", "followed", "happy"}

    capsys.readouterr()
    evaluate(run, tmp_path / "eval", "base", "other")
    assert "nothing has changed, skipped" in capsys.readouterr().out


def test_any_text_is_measured_with_each_models_own_tokenizer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer_and_data(tmp_path, "--num_stories", "60", "--seed", "1")
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time a little fox lost a red kite. " * 30 + "café", encoding="utf-8")
    models = [f"ours={run / 'base/model'}", f"stock={tmp_path / 'llama'}"]
    options = ["--text", str(text), "--num_prompts", "0", "--context", "32", "--stride", "8"]
    eval_model.main(["--output_dir", f"{tmp_path}/compared", "--models", *models, *options])
    found = json.loads((tmp_path / "compared/results.json").read_text())["models"]
    for name in ("ours", "stock"):
        measured = found[name]["texts"]["text.txt"]
        assert measured["bytes"] == len(text.read_bytes()) and (measured["context"], measured["stride"]) == (32, 8)
        assert measured["low"] is None  # of a single document nothing can be resampled
    assert found["ours"]["texts"]["text.txt"]["bits_per_byte"] < found["stock"]["texts"]["text.txt"]["bits_per_byte"]
    assert "a window that moves on by 8 tokens" in (tmp_path / "compared/report.md").read_text()
    assert "Bits per byte, text.txt" in (tmp_path / "compared/report.html").read_text()


@pytest.mark.slow
def test_bits_per_byte_are_those_of_lm_evaluation_harness(run: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load(str(run / "base/model"))
    found = run_tasks(model, tokenizer, ["stories_bits", "stories_hero"], limit=6, batch_size=4)
    texts = [row["text"] for row in story_rows.texts()["test"]][:6]
    context = 64  # shorter than the stories, so that windows matter
    ours, _ = measure_text(model, encode(tokenizer, texts), 512, 512)
    assert ours["bits_per_byte"] == pytest.approx(found["stories_bits"]["bits_per_byte"]["value"], rel=1e-3)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=context)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    theirs = -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True))
    bits, _ = measure_text(model, encode(tokenizer, texts), context, context)
    expected = theirs / math.log(2) / sum(len(text.encode()) for text in texts)
    assert bits["bits_per_byte"] == pytest.approx(expected, rel=1e-3)
    assert 0 <= found["stories_hero"]["acc"]["value"] <= 1 and found["stories_hero"]["rows"] == 6


@pytest.mark.slow
def test_a_task_that_is_not_there_is_named(run: Path) -> None:
    model, tokenizer = load(str(run / "base/model"))
    with pytest.raises(ValueError, match="has no task stories_hreo; the local ones are stories_bits, stories_hero"):
        run_tasks(model, tokenizer, ["stories_hreo"], 1, 1)


@pytest.mark.slow
def test_a_public_task_without_network_is_one_sentence(run: Path, tmp_path: Path) -> None:
    # Its name is found among the public ones, and its data is asked for on the Hub, where the tests cannot go.
    with pytest.raises(
        SystemExit, match="eval_model: the tasks arc_easy could not be run .*ai2_arc.*is the Hub within"
    ):
        models = ["--models", f"base={run / 'base/model'}", "--tasks", "arc_easy"]
        eval_model.main(["--output_dir", str(tmp_path / "eval"), *models])


@pytest.mark.slow
def test_a_public_task_s_scores_reach_report_and_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    # The task as it is published, with rows of its layout from a file in place of the Hub's.
    public = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "arc/arc_easy.yaml").read_text())
    answers = {"text": ["a fox", "an owl", "a red kite"], "label": ["A", "B", "C"]}
    rows = [{"question": f"Who lost {i} kites?", "choices": answers, "answerKey": "ABC"[i % 3]} for i in range(5)]
    Dataset.from_list(rows).to_parquet(tmp_path / "arc.parquet")
    files = dict.fromkeys(("train", "validation", "test"), str(tmp_path / "arc.parquet"))
    here = {
        "task": "arc_here",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/arc_here.yaml").write_text(yaml.safe_dump(public | here))
    monkeypatch.setattr(lm_tasks, "LOCAL", tmp_path / "tasks")
    lm_tasks.task_manager.cache_clear()
    models = ["--models", f"base={run / 'base/model'}", f"other={run / 'other/model'}"]
    eval_model.main(["--output_dir", f"{tmp_path}/eval", *models, "--tasks", "arc_here", "--num_prompts", "0"])
    lm_tasks.task_manager.cache_clear()

    scores = json.loads((tmp_path / "eval/results.json").read_text())["models"]["base"]["tasks"]["arc_here"]
    assert scores["rows"] == 5 and 0 <= scores["acc"]["value"] <= 1 and scores["acc_norm"]["stderr"] > 0
    assert "| arc_here, acc_norm |" in (tmp_path / "eval/report.md").read_text()
    index = yaml.safe_load((tmp_path / "eval/card_results.yaml").read_text())["model-index"]
    card = ModelCardData(**{"model-index": index[:1]})
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.eval_results}
    assert found["arc_here", "acc"] == pytest.approx(scores["acc"]["value"], abs=1e-4)


def test_a_model_of_other_text_is_asked_no_stories(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    rng = random.Random(0)
    text.write_text(" ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(5000)))
    make_tokenizer_and_data(tmp_path, "--files", str(text))
    make_base(tmp_path)
    results = evaluate(tmp_path, tmp_path / "eval", "pretrain")
    assert results["prompts"] is None and "stories" not in results["models"]["pretrain"]
    assert "Instruction" not in (tmp_path / "eval/report.md").read_text()


def test_answers_do_not_depend_on_the_batch(run: Path) -> None:
    folder = run / "base/model"
    model, tokenizer = ScratchForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for parameter in model.parameters():  # away from the start, where all logits are about alike
        torch.nn.init.normal_(parameter, std=0.3)
    asked = [messages for _, messages in itertools.islice(prompts("dev", 0), 4)]
    alone, together = (answer(model, tokenizer, asked, asking(batch_size=size), sampled=False) for size in (1, 4))
    assert alone == together
    assert len({said.text for said in alone}) > 1


def test_texts_of_one_file_name_are_told_apart_by_their_folders() -> None:
    assert list(name_files(["/x/a/book.txt"])) == ["book.txt"]
    named = name_files(["a/book.txt", "b/book.txt", "a/book.txt"])
    assert named == {f"{folder}/book.txt": Path(f"{folder}/book.txt").absolute() for folder in "ab"}


def test_sampled_answers_vary_and_come_again_with_their_seed(run: Path) -> None:
    folder = run / "base/model"
    model, tokenizer = ScratchForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    asked = [messages for _, messages in itertools.islice(prompts("dev", 0), 1)] * 4
    first, again, other = (answer(model, tokenizer, asked, asking(seed=seed), sampled=True) for seed in (0, 0, 1))
    assert first == again != other and len({said.text for said in first}) > 1


def asking(batch_size: int = 256, seed: int = 0) -> Asking:
    return Asking(temperature=0.7, top_k=0, max_new_tokens=16, batch_size=batch_size, seed=seed)


def test_an_answer_is_what_comes_before_the_end_token(run: Path) -> None:
    folder = run / "base/model"
    model, tokenizer = ScratchForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    words = tokenizer("A fox.")["input_ids"]
    end, separator, pad, start = tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>", "<|pad|>", "<|im_start|>"]
    )
    n = len(words)
    assert read_answer(tokenizer, [*words, end, pad, pad], model) == Answer("A fox.", n + 1, ended=True)
    assert read_answer(tokenizer, [*words, separator, *words], model) == Answer("A fox.", n + 1, ended=True)
    assert read_answer(tokenizer, [*words, start], model) == Answer("A fox.<|im_start|>", n + 1, ended=False)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["runs/a/model"], "is not a new NAME=FOLDER"),
        (["sft="], "is not a new NAME=FOLDER"),
        (["sft=nowhere"], "nowhere holds no model"),
        (["sft=nobody/nothing"], "nobody/nothing is not a model's folder, nor a Hub id"),
    ],
)
def test_wrong_models_are_named(models: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        eval_model.main(["--output_dir", f"{tmp_path}/eval", "--data", "data", "--models", *models])


def test_a_model_of_the_hub_may_have_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--gpt2" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "models--gpt2" / "refs").mkdir()
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert parse_models(["gpt2=gpt2", "a=b/c"]) == {"gpt2": "gpt2", "a": "b/c"}
    (tmp_path / "gpt2").mkdir()  # a folder of that name is what is meant
    with pytest.raises(ValueError, match="gpt2 holds no model"):
        parse_models(["gpt2=gpt2"])


def test_shards_of_another_tokenizer_are_refused(run: Path, tmp_path: Path) -> None:
    make_tokenizer_and_data(tmp_path)
    meta = json.loads((tmp_path / "data/meta.json").read_text())
    (tmp_path / "data/meta.json").write_text(json.dumps(meta | {"vocab_size": 321}))
    with pytest.raises(SystemExit, match="321 token ids, the model 320"):
        model = f"base={run / 'base/model'}"
        eval_model.main(["--output_dir", f"{tmp_path}/eval", "--data", f"{tmp_path}/data", "--models", model])
