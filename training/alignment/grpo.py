"""How GRPO trains: prompts of the embedded stories, and rewards by their checker, or the user's own of either."""

import itertools
import json
from dataclasses import asdict
from typing import Any

import trl
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_scratch.tokenizer import encode_prompt
from training.alignment.config import GrpoConfig
from training.alignment.rewards import Reward, as_reward, load_rewards, read_prompts, source_files
from training.alignment.stage import finish, gather_weights, load_model, open_align_stage, quiet
from training.alignment.trainer import common_arguments, run_trainer
from training.engine.device import join_processes
from training.engine.save import save_model
from training.stories import talk
from training.stories.checker import PARTS, Verdict, check
from training.stories.tell import Request

MEASURES = ("kl", "entropy", "completions/mean_length", "completions/clipped_ratio")


class GrpoTrainer(trl.GRPOTrainer):
    """TRL's trainer, for which control tokens that a prompt spells are text."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(self.processing_class, messages) for messages in prompts], None, {}


def run(config: GrpoConfig) -> None:
    """Run the stage."""
    quiet()
    join_processes()
    own = load_rewards(config.rewards)  # a mistake in it is told before anything else
    inputs = config.inputs() | {"reward": [*config.rewards, *source_files(config.rewards)]}
    stage = open_align_stage("grpo", config, inputs)
    if stage.done:
        return
    model, tokenizer = load_model(config.model)
    dataset, rewards = what_to_ask(config, own, tokenizer, getattr(model.config, "max_position_embeddings", None))
    trainer = GrpoTrainer(
        model=model,
        args=trl.GRPOConfig(**grpo_arguments(config)),
        reward_funcs=rewards,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    measures = ["reward", "reward_std", *(f"rewards/{name}/mean" for name in trainer.reward_func_names), *MEASURES]
    metrics = run_trainer(trainer, config, stage, measures, 1 / config.max_steps)
    weights = gather_weights(trainer)
    if trainer.accelerator.is_main_process:
        save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, stage.folder / "model", weights)
    finish(stage, metrics | {"precision": config.precision}, "Next: `python -m training.eval_model`, or talk to it.")


def what_to_ask(
    config: GrpoConfig, own: dict[str, Reward], tokenizer: PreTrainedTokenizerBase, context: int | None
) -> tuple[Dataset, list[Reward]]:
    """Return a prompt for each place of the run, and what rewards the answers.

    Args:
        own: The user's own rewards by name; the stories' if there are none.
        context: Tokens that the model takes, prompt and answer together.
    """
    if not own:
        return asked(config), [instruction, happy_ending]
    if config.prompts is None:
        return asked(config), [as_reward(name, reward, None, ["request"]) for name, reward in own.items()]
    prompts = read_prompts(config.prompts, tokenizer, context and context - config.max_new_tokens)
    rewards = [as_reward(name, reward, prompts, [*prompts.columns]) for name, reward in own.items()]
    return prompts.dataset(config.max_steps * config.prompts_per_step, config.seed), rewards


def asked(config: GrpoConfig) -> Dataset:
    """Return a prompt for each place of the run, with what it asks for."""
    drawn = itertools.islice(talk.prompts("train", config.seed), config.max_steps * config.prompts_per_step)
    return Dataset.from_list(
        [{"prompt": messages, "request": json.dumps(asdict(request))} for request, messages in drawn]
    )


def instruction(completions: list[Any], request: list[str], **kwargs: Any) -> list[float]:
    """Reward the share of hero, thing, place, mishap and a whole story that is right."""
    checks = check_all(completions, request)
    return [sum(getattr(found, part) for part in PARTS) / len(PARTS) for found in checks]


def happy_ending(completions: list[Any], request: list[str], **kwargs: Any) -> list[float]:
    """Reward a happy ending, 1 or 0."""
    return [float(found.happy) for found in check_all(completions, request)]


def check_all(completions: list[Any], request: list[str]) -> list[Verdict]:
    """Return what the checker finds in each answer."""
    texts = [answer[0]["content"] for answer in completions]
    return [check(Request(**json.loads(facts)), text) for facts, text in zip(request, texts, strict=True)]


def grpo_arguments(config: GrpoConfig) -> dict[str, Any]:
    """Return the arguments of TRL's trainer.

    Raises:
        ValueError: The answers of a step cannot be shared out evenly.
    """
    processes = PartialState().num_processes
    answers = config.prompts_per_step * config.num_generations
    micro_batch = config.micro_batch_size or answers // processes
    if config.num_generations < 2:
        raise ValueError(f"num_generations={config.num_generations} compares nothing; use at least 2.")
    if micro_batch < 1 or answers % (micro_batch * processes):
        raise ValueError(
            f"prompts_per_step={config.prompts_per_step} times num_generations={config.num_generations} is not a "
            f"multiple of micro_batch_size={config.micro_batch_size} times {processes} processes; change one of them."
        )
    return common_arguments(config) | {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": answers // (micro_batch * processes),
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "lr_scheduler_type": "constant_with_warmup",
        "weight_decay": 0.0,
        "beta": config.beta,
        "shuffle_dataset": False,  # the prompts come from a stream that is random already
        "disable_dropout": True,
    }
