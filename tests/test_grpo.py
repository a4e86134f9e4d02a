"""GRPO: what is rewarded, that the reward rises, and that the pipeline knows the stage."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_align import run_stage, write_jsonl
from transformers import AutoTokenizer

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training import grpo, sft, train_tokenizer
from training.alignment.config import GrpoConfig
from training.alignment.grpo import asked, grpo_arguments, happy_ending, instruction
from training.engine.save import save_model
from training.run import steps as plan_steps
from training.stories import talk
from training.stories.checker import check
from training.stories.tell import Request, stories


def answers(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_the_checkers_reward_what_was_asked() -> None:
    told = next(story for story in stories("train", 0) if story.happy)
    other = next(
        story for story in stories("train", 1) if not story.happy and not check(told.request, story.text).followed
    )
    facts = [json.dumps(asdict(told.request))] * 3
    said = answers(told.text, other.text, told.text.rpartition(". ")[0])
    right, wrong, cut = instruction(said, request=facts)
    assert right == 1 and wrong < 1 and cut < 1
    assert happy_ending(said, request=facts) == [1, 0, 0]


def test_every_place_of_the_run_has_its_prompt() -> None:
    config = GrpoConfig(output_dir="runs/x", model="m", max_steps=3, prompts_per_step=2)
    rows = asked(config)
    assert len(rows) == 6 and rows[0]["prompt"][0]["role"] == "user"
    assert Request(**json.loads(rows[0]["request"])) == next(talk.prompts("train", 0))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "compares nothing"),
        ({"micro_batch_size": 5}, "is not a multiple of micro_batch_size=5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_arguments(GrpoConfig(output_dir="runs/x", model="m", **settings))


def test_the_recipe_goes_on_from_the_sft_model_of_a_run(tmp_path: Path) -> None:
    for stage in ("pretrain", "sft"):
        (tmp_path / stage / "model").mkdir(parents=True)
    plan = plan_steps(Path(__file__).parent.parent / "training/recipes/grpo", tmp_path, [])
    assert [step.name for step in plan] == ["grpo", "eval"]
    assert plan[0].inputs == ["--model", str(tmp_path / "sft/model")]
    names = [option.partition("=")[0] for option in plan[1].inputs if "=" in option]
    assert names == ["base", "sft", "grpo"]


def endings(count: int) -> list[dict[str, Any]]:
    """Conversations whose answer is one of two ends of a story, the happy one in every second."""
    told = stories("train", 0)
    sentences: dict[bool, list[str]] = {True: [], False: []}
    while not all(sentences.values()):
        story = next(told)
        sentence = story.text.rpartition(". ")[2]
        sentences[check(story.request, sentence).happy].append(sentence)
    asked = itertools.islice(talk.prompts("train", 1), count)
    return [
        {"messages": [*messages, {"role": "assistant", "content": sentences[i % 2 == 0][0]}]}
        for i, (_, messages) in enumerate(asked)
    ]


def make_base(folder: Path) -> None:
    """Write `folder/base`, a model of noise, with `folder/tokenizer` of the stories."""
    text = ["--vocab_size", "800", "--num_stories", "1000"]
    train_tokenizer.main(["--output_dir", f"{folder}/tokenizer", *text])
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    config = ScratchConfig(vocab_size=800, initializer_range=0.05, **sizes, **tokens)
    save_model(ScratchForCausalLM(config), tokenizer, folder / "base")


@pytest.mark.slow
def test_how_many_answers_are_held_at_once_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path)
    # Noise fulfils nothing, and equal rewards teach nothing: here long answers are liked.
    monkeypatch.setattr("training.alignment.grpo.happy_ending", lambda completions, **_: [
        float(len(answer[0]["content"])) for answer in completions
    ])  # fmt: skip
    command = ["--model", f"{tmp_path}/base", "--save_steps", "1", "--learning_rate", "0.01", "--precision", "fp32"]
    command += "--max_steps 3 --prompts_per_step 2 --num_generations 4 --max_new_tokens 12 --warmup_ratio 0".split()
    lines = {}
    for size in (0, 2):
        run = tmp_path / f"at-once-{size}"
        grpo.main([*command, "--output_dir", str(run), "--micro_batch_size", str(size)])
        lines[size] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines[0]) == 3 and lines[0][-1]["grad_norm"] > 0
    for one, other in zip(lines[0], lines[2], strict=True):
        for name in ("reward", "grad_norm", "completions/mean_length"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_the_reward_rises(tmp_path: Path, precision: str) -> None:
    make_base(tmp_path)
    # A model that answers with the end of a story, happy or not, whatever it is asked.
    data = write_jsonl(tmp_path / "endings.jsonl", endings(48))
    learn = {"max_steps": 120, "batch_size": 16, "learning_rate": 0.01, "max_length": 128, "warmup_ratio": 0.05}
    learn |= {"precision": "fp32"}
    assert run_stage(sft.main, f"{tmp_path}/base", data, tmp_path / "sft", **learn)[-1]["loss"] < 0.1
    # Small enough steps: with 0.001 and more a single one can turn all answers to the unhappy end, on some processors.
    steps = "--max_steps 32 --prompts_per_step 4 --num_generations 8 --max_new_tokens 40".split()
    rates = f"--learning_rate 0.0006 --beta 0.001 --precision {precision}".split()
    grpo.main(["--model", f"{tmp_path}/sft/model", "--output_dir", f"{tmp_path}/grpo", *steps, *rates])
    lines = [json.loads(line) for line in (tmp_path / "grpo/metrics.jsonl").read_text().splitlines()]
    happy = [line["rewards/happy_ending/mean"] for line in lines]
    assert 0.2 < sum(happy[:2]) / 2 < 0.8 and sum(happy[-6:]) / 6 > 0.9
    assert sum(line["reward"] for line in lines[-6:]) / 6 > sum(line["reward"] for line in lines[:2]) / 2 + 0.2
    assert (tmp_path / "grpo/model/model.safetensors").is_file() and lines[-1]["kl"] > 0
