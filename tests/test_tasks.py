"""Benchmarks from files: their layouts, the harness's own numbers, what ties and mistakes do, and scores in training.

The files are made here, in the layouts in which the data sets are published.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
import yaml
from datasets import Dataset
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_run import make_tokenizer_and_data
from transformers import PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from training import eval_model, pretrain
from training.engine.loop import PretrainingRun
from training.evaluation.benchmark_files import file_rows
from training.evaluation.likelihoods import BatchedLM
from training.evaluation.page import write_page
from training.evaluation.tasks import _ask, find_tasks, run_tasks

OWN = Path(lm_eval.tasks.__file__).parent
WORDS = "fox owl kite red lost little upon forest found said".split()
PAIRS = [(f"The {a} {b} it.", f"The {b} it {a}.") for a, b in zip(WORDS, WORDS[1:], strict=False)]
BLIMP = {
    uid: [
        {"sentence_good": good, "sentence_bad": bad, "field": field, "UID": uid, "pairID": str(i)}
        for i, (good, bad) in enumerate(pairs)
    ]
    for uid, field, pairs in (
        ("adjunct_island", "syntax", PAIRS[:5]),
        ("npi_present_1", "semantics", PAIRS[3:]),
        ("causative", "syntax_semantics", PAIRS[:3]),
    )
}
PASSAGES = [{"text": f"Once a {word}\nlost a red kite, and the owl said: it's the {word}"} for word in WORDS]
QUESTIONS = [
    {
        "id": str(i),
        "question": f"Who lost {i} kites?",
        "choices": {"text": ["a fox", "an owl", "a red kite", word][: 3 + i % 2], "label": list("ABCD")[: 3 + i % 2]},
        "answerKey": "ABC"[i % 3],
    }
    for i, word in enumerate(WORDS)
]
GOALS = [
    {"goal": f"find a {word}", "sol1": "ask the owl", "sol2": f"lose the {word} in the forest", "label": i % 2}
    for i, word in enumerate(WORDS)
]
SCENES = [
    {
        "activity_label": "Flying a kite",
        "ctx_a": f"[header] The {word} [title] comes  home.",
        "ctx_b": "the owl",
        "endings": ["says [step] no.", f"lost the {word}.", "found it.", "  said café"],
        "label": str(i % 4),
    }
    for i, word in enumerate(WORDS)
]
FILES = {  # as the harness's own tasks have them, and where they lie
    "lambada_openai": (PASSAGES, "lambada/data/lambada_test.jsonl", "lambada/lambada_openai.yaml"),
    "arc_easy": (QUESTIONS, "arc/ARC-Easy/test-00000-of-00001.parquet", "arc/arc_easy.yaml"),
    "piqa": (GOALS, "piqa/data/validation-00000-of-00001.parquet", "piqa/piqa.yaml"),
    "hellaswag": (SCENES, "hellaswag/data/validation-00000-of-00001.parquet", "hellaswag/hellaswag.yaml"),
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All benchmarks as `hf download` and `git clone` leave them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for uid, rows in BLIMP.items():
        write(folder / f"blimp/data/{uid}.jsonl", rows)
    for rows, name, _ in FILES.values():
        write(folder / name, rows)
    return folder


# ---- files ----

OTHER_LAYOUTS = {
    "blimp/adjunct_island.jsonl": ("blimp", BLIMP["adjunct_island"]),
    "blimp/adjunct_island/train-00000-of-00001.parquet": ("blimp", BLIMP["adjunct_island"]),
    "lambada_openai.jsonl": (
        "lambada_openai",
        [dict(zip(("context", "continuation"), row["text"].rsplit(" ", 1), strict=True)) for row in PASSAGES],
    ),
    "ARC-Easy-Test.jsonl": (
        "arc_easy",
        [
            {
                "answerKey": row["answerKey"],
                "question": {
                    "stem": row["question"],
                    "choices": [
                        {"text": text, "label": label} for text, label in zip(*row["choices"].values(), strict=True)
                    ],
                },
            }
            for row in QUESTIONS
        ],
    ),
    "arc_easy.jsonl": (
        "arc_easy",
        [
            {"query": f"Question: {row['question']}", "choices": row["choices"]["text"], "gold": i % 3}
            for i, row in enumerate(QUESTIONS)
        ],
    ),
    "piqa/valid.jsonl": ("piqa", [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in GOALS]),
    "piqa.jsonl": (
        "piqa",
        [
            {"query": f"Question: {row['goal']}\n", "choices": [row["sol1"], row["sol2"]], "gold": row["label"]}
            for row in GOALS
        ],
    ),
    "hellaswag_val.jsonl": ("hellaswag", [row | {"label": int(row["label"])} for row in SCENES]),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_a_benchmark_has_the_same_rows_in_each_of_its_layouts(name: str, data: Path, tmp_path: Path) -> None:
    task, rows = OTHER_LAYOUTS[name]
    path = write(tmp_path / name, rows)
    if path.name == "valid.jsonl":
        path.with_name("valid-labels.lst").write_text("".join(f"{row['label']}\n" for row in GOALS))
    found = getattr(file_rows, task)(str(tmp_path), 0)["test"].to_list()
    expected = getattr(file_rows, task)(str(data), 0)["test"].to_list()
    assert found == (expected[: len(rows)] if task == "blimp" else expected) and len(found) == len(rows)


def test_a_share_of_the_rows_is_one_of_each_paradigm(data: Path) -> None:
    rows = file_rows.blimp(str(data), 2)["test"].to_list()
    assert [row["UID"] for row in rows] == [uid for uid in sorted(BLIMP) for _ in range(2)]
    assert len(file_rows.piqa(str(data), 4)["test"]) == 4


def test_what_is_wrong_with_the_files_is_one_sentence(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file of the task piqa \(piqa.jsonl, .*; yonatanbisk.com.* has it"):
        find_tasks(["piqa"], str(tmp_path))
    with pytest.raises(ValueError, match="boolq cannot be read from files; arc_easy, blimp, .* can"):
        find_tasks(["blimp", "boolq"], str(data))
    path = write(tmp_path / "piqa.jsonl", [*GOALS[:2], {"question": "?"}])
    with pytest.raises(
        ValueError, match=r"piqa.jsonl, line 3: no row of piqa as it is published \(KeyError\('sol1'\)"
    ):
        file_rows.piqa(str(tmp_path), 0)
    path.write_text("")
    with pytest.raises(ValueError, match="piqa.jsonl has no rows; take yonatanbisk"):
        file_rows.piqa(str(tmp_path), 0)
    with pytest.raises(SystemExit, match="eval_model: .*no file of the task hellaswag"):
        options = ["--models", "gpt=a/b", "--tasks", "hellaswag", "--task_data", str(tmp_path)]
        eval_model.main(["--output_dir", str(tmp_path / "eval"), *options])


# ---- numbers ----


def own_tasks(data: Path, folder: Path) -> dict[str, list[str]]:
    """Write the harness's own tasks with these files in the place of the Hub's, and return their names by ours."""
    folder.mkdir()
    own = {f"blimp_{uid}": (data / f"blimp/data/{uid}.jsonl", f"blimp/{uid}.yaml") for uid in BLIMP}
    own |= {name: (data / file, source) for name, (_, file, source) in FILES.items()}
    for name, (file, source) in own.items():
        files = dict.fromkeys(("train", "validation", "test"), str(file))
        kind = "parquet" if file.suffix == ".parquet" else "json"
        here = {"task": f"own_{name}", "dataset_path": kind, "dataset_name": None}
        here |= {"include": str(OWN / source), "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(here))
    return {"blimp": [f"own_blimp_{uid}" for uid in sorted(BLIMP)]} | {name: [f"own_{name}"] for name in FILES}


def test_each_row_has_the_result_of_the_harness_s_own_task(
    data: Path, tmp_path: Path, tiny_model: ScratchForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    names = own_tasks(data, tmp_path / "own")
    manager = TaskManager(include_path=str(tmp_path / "own"), include_defaults=False)
    harness = HFLM(pretrained=tiny_model, tokenizer=tiny_tokenizer, batch_size=3)
    theirs = _ask(harness, [name for many in names.values() for name in many], manager, None)["samples"]
    ours = _ask(
        BatchedLM(pretrained=tiny_model, tokenizer=tiny_tokenizer),
        list(names),
        find_tasks(list(names), str(data)),
        None,
    )["samples"]
    for name, many in names.items():
        expected = [row for one in many for row in theirs[one]]
        assert len(ours[name]) == len(expected) >= 10
        for found, own in zip(ours[name], expected, strict=True):
            assert found["arguments"] == own["arguments"]
            assert [greedy for _, greedy in found["filtered_resps"]] == [greedy for _, greedy in own["filtered_resps"]]
            likelihoods = [[one for one, _ in row["filtered_resps"]] for row in (found, own)]
            assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-4)
            metrics = {key: own[key] for key in ("acc", "acc_norm", "perplexity") if key in own}
            assert {key: found[key] for key in metrics} == pytest.approx(metrics, rel=1e-4)
    assert len({row["acc"] for many in ours.values() for row in many}) == 2  # there is something to get wrong


def test_texts_longer_than_the_context_and_greedy_words_are_as_the_harness_has_them(
    tiny_model: ScratchForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    from lm_eval.api.instance import Instance

    texts = [("fox ", "and owl"), ("a fox", " lost"), ("kite " * 90, "red " * 9)]
    texts += [("<|endoftext|>fox", " owl"), ("", "<|endoftext|>kite"), ("", " red")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    likeliest = tiny_model.generate(torch.tensor([[0]]), max_new_tokens=3, do_sample=False)[0, 1:].tolist()
    tokens = [(("", ""), [0], likeliest), (("", ""), [0], [*likeliest[:-1], (likeliest[-1] + 1) % 320])]
    options = {"pretrained": tiny_model, "tokenizer": tiny_tokenizer}
    theirs, ours = (
        lm.loglikelihood(requests) + lm._loglikelihood_tokens(tokens)
        for lm in (HFLM(batch_size=2, **options), BatchedLM(**options))
    )
    assert [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], rel=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [greedy for _, greedy in ours[-2:]] == [True, False]


def test_ties_are_wrong_and_fields_are_means_of_their_paradigms(
    data: Path, make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # all tokens alike: sentences of as many tokens tie
    found = run_tasks(model, tiny_tokenizer, ["blimp"], 0, 1, str(data))["blimp"]
    rows = {
        uid: [tiny_tokenizer([f" {row[key]}" for key in ("sentence_good", "sentence_bad")]) for row in BLIMP[uid]]
        for uid in BLIMP
    }
    shorter = {uid: [len(good) < len(bad) for good, bad in (row["input_ids"] for row in rows[uid])] for uid in rows}
    rates = {uid: sum(one) / len(one) for uid, one in shorter.items()}
    assert {uid: one["value"] for uid, one in found["paradigms"].items()} == rates
    assert found["acc"]["value"] == pytest.approx(sum(rates.values()) / 3) and found["rows"] == 14
    assert found["fields"].keys() == {"syntax", "semantics", "syntax-semantics"}
    assert found["fields"]["semantics"]["value"] == rates["npi_present_1"]
    assert found["acc"]["low"] < found["acc"]["value"] < found["acc"]["high"] or not any(rates.values())


# ---- what comes of them ----


def test_the_scores_reach_results_reports_and_card(base: str, data: Path, tmp_path: Path) -> None:
    tasks = ["--tasks", "blimp", "lambada", "arc_easy", "--task_data", str(data), "--num_prompts", "0"]
    eval_model.main(["--output_dir", str(tmp_path / "eval"), "--models", f"base={base}", *tasks])
    found = json.loads((tmp_path / "eval/results.json").read_text())["models"]["base"]["tasks"]
    assert found.keys() == {"blimp", "lambada_openai", "arc_easy"} and found["blimp"]["rows"] == 14
    for task in found.values():
        assert task["acc"]["low"] <= task["acc"]["value"] <= task["acc"]["high"]
    share = sum(1 / len(row["choices"]["text"]) for row in QUESTIONS) / len(QUESTIONS)
    assert (
        found["arc_easy"]["acc"]["chance"] == pytest.approx(share) and "chance" not in found["lambada_openai"]["acc"]
    )
    report, page = ((tmp_path / f"eval/report.{kind}").read_text() for kind in ("md", "html"))
    for line in ("blimp, acc", "blimp, acc, syntax-semantics", "causative", "lambada_openai, perplexity"):
        assert f"| {line} |" in report and line in page
    assert "; chance 50.0)" in report and "chance 50.0" in page  # of so few rows nothing lies above chance
    assert "the mean of 3 of 67 paradigms" in report
    (model,) = yaml.safe_load((tmp_path / "eval/card_results.yaml").read_text())["model-index"]
    card = {
        (one["dataset"]["name"], metric["type"]): metric["value"]
        for one in model["results"]
        for metric in one["metrics"]
    }
    assert card["blimp", "acc"] == pytest.approx(found["blimp"]["acc"]["value"], abs=1e-4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_tokenizer_and_data(folder)
    return folder


def test_scores_in_training_change_nothing_and_their_curve_goes_on(
    corpus: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --context_length 64 --batch_rows 4"
    steps = "--max_steps 8 --eval_steps 2 --save_steps 3 --log_steps 1 --precision fp32 --attention_dropout 0.2"
    inputs = ["--data", f"{corpus}/data", "--tokenizer", f"{corpus}/tokenizer", *sizes.split(), *steps.split()]
    tasks = ["--eval_tasks", "blimp", "lambada", "--eval_task_data", str(data), "--eval_task_rows", "2"]
    for name, more in (("without", []), ("with", tasks)):
        pretrain.main(["--output_dir", str(tmp_path / name), *inputs, *more])
    train_step = PretrainingRun.train_step

    def stopped(self: PretrainingRun, rows: Any) -> tuple[float, int, float]:
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, rows)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="stopped after step 5"):
        patch.setattr(PretrainingRun, "train_step", stopped)
        pretrain.main(["--output_dir", str(tmp_path / "stopped"), *inputs, *tasks])
    pretrain.main(["--output_dir", str(tmp_path / "stopped"), *inputs, *tasks])

    def weights(name: str) -> str:
        return hashlib.sha256((tmp_path / name / "model/model.safetensors").read_bytes()).hexdigest()

    def curve(name: str) -> list[tuple[int, float, float]]:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        keys = ("step", "task/blimp", "task/lambada_openai")
        return [tuple(line[key] for key in keys) for line in lines if "task/blimp" in line]

    assert weights("without") == weights("with") == weights("stopped")
    assert [step for step, *_ in curve("with")] == [2, 4, 6, 8] and not curve("without")
    assert curve("stopped") == curve("with")
    record = json.loads((tmp_path / "with/stage.json").read_text())
    assert record["metrics"]["task/blimp"] == curve("with")[-1][1]
    (tmp_path / "run").mkdir()
    (tmp_path / "with").rename(tmp_path / "run/pretrain")
    page = write_page([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Benchmarks" in page and "blimp" in page and "lambada_openai" in page


def test_a_missing_file_is_told_before_the_first_step(corpus: Path, tmp_path: Path) -> None:
    inputs = ["--data", f"{corpus}/data", "--tokenizer", f"{corpus}/tokenizer"]
    with pytest.raises(SystemExit, match="pretrain: .* has no file of the task blimp"):
        tasks = ["--eval_tasks", "blimp", "--eval_task_data", str(tmp_path)]
        pretrain.main(["--output_dir", str(tmp_path / "run"), *inputs, *tasks])
    assert not (tmp_path / "run").exists()
