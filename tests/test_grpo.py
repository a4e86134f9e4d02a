"""GRPO: what is rewarded, that the reward rises, and that the pipeline knows the stage."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_run import make_tokenizer_and_data
from transformers import AutoTokenizer

from hf_scratch import ScratchConfig, ScratchForCausalLM
from training import grpo, sft
from training.data import stories
from training.run import steps
from training.save import save_model


def answers(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_the_checkers_reward_what_was_asked() -> None:
    told = next(story for story in stories.stories("train", 0) if story.happy)
    other = next(
        story
        for story in stories.stories("train", 1)
        if not story.happy and not stories.check(told.request, story.text).followed
    )
    facts = [json.dumps(asdict(told.request))] * 3
    said = answers(told.text, other.text, told.text.rpartition(". ")[0])
    right, wrong, cut = grpo.instruction(said, request=facts)
    assert right == 1 and wrong < 1 and cut < 1
    assert grpo.happy_ending(said, request=facts) == [1, 0, 0]


def test_every_place_of_the_run_has_its_prompt() -> None:
    config = grpo.GrpoConfig(output_dir="runs/x", model="m", max_steps=3, prompts_per_step=2)
    rows = grpo.asked(config)
    assert len(rows) == 6 and rows[0]["prompt"][0]["role"] == "user"
    assert stories.Request(**json.loads(rows[0]["request"])) == next(stories.prompts("train", 0))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "compares nothing"),
        ({"micro_batch_size": 5}, "is not a multiple of micro_batch_size=5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo.grpo_arguments(grpo.GrpoConfig(output_dir="runs/x", model="m", **settings))


def test_the_recipe_goes_on_from_the_sft_model_of_a_run(tmp_path: Path) -> None:
    for stage in ("pretrain", "sft"):
        (tmp_path / stage / "model").mkdir(parents=True)
    plan = steps(Path(__file__).parent.parent / "training/recipes/grpo", tmp_path, [])
    assert [step.name for step in plan] == ["grpo", "eval"]
    assert plan[0].inputs == ["--model", str(tmp_path / "sft/model")]
    names = [option.partition("=")[0] for option in plan[1].inputs if "=" in option]
    assert names == ["base", "sft", "grpo"]


@pytest.mark.slow
def test_the_reward_rises(tmp_path: Path) -> None:
    make_tokenizer_and_data(tmp_path, "--num_stories", "400")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    model_sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = ScratchForCausalLM(ScratchConfig(vocab_size=320, **model_sizes, **tokens))
    save_model(model, tokenizer, tmp_path / "base")
    # A model that knows six stories by heart and tells one of them, happy or not, whatever it is asked.
    few = "--num_examples 6 --batch_size 6 --max_steps 150 --learning_rate 0.01 --max_length 512".split()
    sft.main(["--model", f"{tmp_path}/base", "--output_dir", f"{tmp_path}/sft", *few])
    sizes = "--max_steps 12 --prompts_per_step 2 --num_generations 8 --max_new_tokens 350".split()
    rates = "--learning_rate 0.002 --beta 0.001".split()
    grpo.main(["--model", f"{tmp_path}/sft/model", "--output_dir", f"{tmp_path}/grpo", *sizes, *rates])
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "grpo/metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.2
