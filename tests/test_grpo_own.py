"""GRPO on the user's own prompts, with the user's own rewards: what they get, that they count, and each mistake."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from tiny_align import EVIL, turns, write_jsonl
from transformers import PreTrainedTokenizerBase

from hf_scratch import ScratchForCausalLM
from training import grpo
from training.alignment.config import GrpoConfig
from training.alignment.grpo import GrpoTrainer, grpo_arguments
from training.alignment.rewards import Prompts, load_rewards, read_prompts
from training.stage.config import parse_config

REWARDS = '''
import json

number = 3

def letters(completions, letter, **kwargs):
    """The share of the letter that the row asks for."""
    return [text.count(one) / max(1, len(text)) for text, one in zip(completions, letter, strict=True)]

def seen(prompts, completions, **kwargs):
    with open("seen.jsonl", "a") as file:
        for row in zip(prompts, completions, kwargs["number"], kwargs["facts"], strict=True):
            file.write(json.dumps(row) + "\\n")
    return [None] * len(prompts)

def said(completions, **kwargs):
    return [float(len(answer[0]["content"])) for answer in completions]

def too_few(completions, **kwargs):
    return [1.0]

def not_a_number(completions, **kwargs):
    return [0.0, float("nan"), *[0.0] * (len(completions) - 2)]

def words(completions, **kwargs):
    return ["good"] * len(completions)

async def later(completions, **kwargs):
    return [1.0] * len(completions)

def narrow(completions):
    return [1.0] * len(completions)

def asks_for_more(completions, answer, **kwargs):
    return [1.0] * len(completions)
'''
PROMPTS = [{"prompt": f"Who has kite {i}?", "letter": "e", "number": i, "facts": {"kite": [i]}} for i in range(3)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has `my_rewards.py` and `prompts.jsonl`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    return tmp_path


def command(base: str, *rewards: str, prompts: str | None = "prompts.jsonl", **settings: Any) -> list[str]:
    """The command of a step or two on a model of noise."""
    small = {"max_steps": 2, "prompts_per_step": 2, "num_generations": 2, "max_new_tokens": 6, "precision": "fp32"}
    options = {"model": base, "output_dir": "run", **({"prompts": prompts} if prompts else {}), **small, **settings}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, "--reward", *rewards] if rewards else words


def metrics() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_reward_of_the_user_s_own_rises(here: Path, base: str) -> None:
    sizes = {"max_steps": 25, "prompts_per_step": 2, "num_generations": 8, "max_new_tokens": 8}
    grpo.main(command(base, "my_rewards:letters", learning_rate=0.003, warmup_ratio=0, **sizes))
    rewards = [line["rewards/letters/mean"] for line in metrics()]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    assert "rewards/instruction/mean" not in metrics()[0]
    assert ScratchForCausalLM.from_pretrained("run/model").config.vocab_size == 320


def test_functions_get_the_columns_as_the_file_has_them_and_their_rewards_add_up(here: Path, base: str) -> None:
    grpo.main(command(base, "my_rewards:letters", "my_rewards:seen", max_steps=3))
    found = [json.loads(line) for line in Path("seen.jsonl").read_text().splitlines()]
    assert len(found) == 3 * 2 * 2 and {row[2] for row in found} == {0, 1, 2}, "every prompt is asked"
    for asked, answer, number, facts in found:
        assert asked == f"Who has kite {number}?" and facts == {"kite": [number]} and isinstance(answer, str)
    for line in metrics():
        assert line["reward"] == pytest.approx(line["rewards/letters/mean"])  # None does not count
        assert line["rewards/seen/mean"] is None
    inputs = json.loads(Path("run/stage.json").read_text())["inputs"]
    assert inputs["reward"]["path"] == ["my_rewards:letters", "my_rewards:seen", "my_rewards.py", "my_rewards.py"]


def test_another_reward_is_another_run(here: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(base, "my_rewards:letters", max_steps=1)
    grpo.main(words)
    grpo.main(words)
    assert "nothing has changed, skipped" in capsys.readouterr().out
    (here / "my_rewards.py").write_text(REWARDS.replace("text.count(one)", "2 * text.count(one)"))
    sys.modules.pop("my_rewards")
    grpo.main(words)
    assert "grpo: reward changed; the old output is now" in capsys.readouterr().out


def test_a_function_written_for_messages_gets_messages_and_the_stories_take_one_too(here: Path, base: str) -> None:
    write_jsonl(here / "prompts.jsonl", [{"prompt": turns("Who has it?", "The fox.", "And now?")}])
    grpo.main(command(base, "my_rewards:said", max_steps=1))
    assert metrics()[0]["rewards/said/mean"] > 0
    grpo.main(command(base, "my_rewards:said", prompts=None, max_steps=1, output_dir="stories", max_new_tokens=2))
    assert json.loads(Path("stories/metrics.jsonl").read_text())["rewards/said/mean"] > 0


def test_yaml_names_one_function_or_several(tmp_path: Path) -> None:
    for value, rewards in (("a:b", ["a:b"]), ("[a:b, c:d]", ["a:b", "c:d"])):
        (tmp_path / "grpo.yaml").write_text(f"model: m\noutput_dir: o\nprompts: p.jsonl\nreward: {value}\n")
        assert parse_config(GrpoConfig, ["--config", f"{tmp_path}/grpo.yaml"]).rewards == rewards


def test_every_pass_asks_all_prompts_in_an_order_of_the_seed() -> None:
    prompts = Prompts([turns(str(i)) for i in range(5)], {}, are_text=True)
    asked = [prompts.dataset(12, seed)["row"] for seed in (0, 0, 1)]
    assert list(asked[0]) == list(asked[1]) != list(asked[2])
    assert sorted(asked[0][:5]) == sorted(asked[0][5:10]) == [0, 1, 2, 3, 4] and len(asked[0]) == 12


def test_control_tokens_that_a_prompt_spells_are_text(
    here: Path, make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    trainer = GrpoTrainer(
        model=make_model(),
        args=trl.GRPOConfig(**grpo_arguments(GrpoConfig(output_dir="out", model="m", precision="fp32"))),
        reward_funcs=[lambda completions, **kwargs: [0.0] * len(completions)],
        train_dataset=Prompts([turns("Hi")], {}, are_text=True).dataset(1, 0),
        processing_class=tiny_tokenizer,
    )
    plain, evil = trainer._tokenize_prompts([turns("Hi"), turns(f"Hi{EVIL}")])[0]
    expected = tiny_tokenizer.apply_chat_template(turns("Hi"), add_generation_prompt=True)["input_ids"]
    assert plain == expected, "as TRL has it"
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert evil.count(end) == plain.count(end) and len(evil) > len(plain)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], r"prompts=prompts.jsonl without a reward; name a function of your own"),
        (["my_rewards"], "reward 'my_rewards' is not module:function"),
        (["my_rewards.py:letters"], r"reward my_rewards.py:letters: there is no module my_rewards.py in "),
        (["./my_rewards:letters"], "is not module:function"),
        (["mine:letters"], "there is no module mine in "),
        (["needy:letters"], "the module needs no_such_package, which is not installed"),
        (["my_rewards:leters"], "the module has no leters; did you mean 'letters'"),
        (["my_rewards:number"], "reward my_rewards:number is no function but 3"),
        (["my_rewards:said", "my_rewards:said"], "two rewards are called said"),
        (["my_rewards:narrow"], r"cannot be called with prompts, .* \(got an unexpected keyword argument 'prompts'\)"),
        (["my_rewards:asks_for_more"], r"cannot be called with .* \(missing a required argument: 'answer'\)"),
        (["my_rewards:too_few"], "reward too_few returned 1 rewards for 4 answers; return one for each"),
        (["my_rewards:not_a_number"], "reward not_a_number is nan for the answer .*; return a finite number"),
        (["my_rewards:words"], r"reward words returned \['good', .* and not a list of numbers"),
        pytest.param(
            ["my_rewards:later"],
            "reward later returned <coroutine .* and not a list of numbers",
            marks=pytest.mark.filterwarnings("ignore:coroutine 'later' was never awaited"),
        ),
    ],
)
def test_a_mistake_in_a_reward_is_one_sentence(here: Path, base: str, rewards: list[str], message: str) -> None:
    (here / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(SystemExit, match=f"^grpo: .*{message}"):
        grpo.main(command(base, *rewards))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty; expected rows like"),
        ([{"question": "Who?"}], r"line 1: it has no prompt, its columns are question; expected \{\"prompt\""),
        ([{"prompt": "Who?"}, {"prompt": 3}], r"line 2: its prompt is 3 and not a list of messages"),
        ([{"prompt": turns("Who?", "The fox.")}], "does not end with a user message"),
        ([{"prompt": "Who? " * 60}], "has room for 122; lower max_new_tokens, or leave the row out"),
        ([{"prompt": "Who?", "completions": "The fox"}], "the column completions has the name of what a reward gets"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_named(here: Path, base: str, rows: list[Any], message: str) -> None:
    write_jsonl(here / "prompts.jsonl", rows)
    with pytest.raises(SystemExit, match=message):
        grpo.main(command(base, "my_rewards:said"))


def test_a_module_is_found_in_the_working_directory_whatever_the_path(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
    assert load_rewards(["my_rewards:said"])["said"]([[{"content": "four"}]]) == [4.0]


def test_a_system_column_stands_before_the_prompt(here: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    path = write_jsonl(here / "prompts.jsonl", [{"prompt": "Who?", "system": "Be brief."}])
    assert [message["role"] for message in read_prompts(path, tiny_tokenizer, None).messages[0]] == ["system", "user"]
