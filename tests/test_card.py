"""A card says true things of a model's origin, licence and data, in a form that Python and the Hub read."""

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_run import THUMBS, trained

from hf_scratch.export.transformers import write_origin
from hf_scratch.hub.card import Base, CardFacts, license_metadata, make_card
from hf_scratch.hub.client import Target
from hf_scratch.hub.publish import copy_for
from training import release

COUNTS = {"documents": 10, "tokens": 100, "bytes": 300}
DATA = {"config": {"dataset": None}, "inputs": {}, "metrics": {"train": COUNTS, "val": COUNTS}}


def test_the_data_are_called_stories_only_if_every_stage_learnt_from_stories() -> None:
    pretrained = {"data": DATA, "pretrain": {"config": {}}}
    about = functools.partial(release.describe_data, "", base=None)
    assert release.STORIES in about(pretrained | {"sft": trained(), "dpo": trained()})
    for name in ("sft", "dpo"):
        assert "Text of the publisher's choice" in about(pretrained | {name: trained(data="chats.jsonl")})
    assert "Text of the publisher's choice" in about({"data": DATA, "sft": trained()})
    assert "- Pretraining" not in about({"data": DATA, "sft": trained()})
    assert "5 pairs of answers" in about(pretrained | {"dpo": trained()})
    liked = about(pretrained | {"dpo": trained(data="thumbs.jsonl") | {"data": THUMBS}})
    assert "5 answers, each with a thumb up or down" in liked and "pairs" not in liked


def test_reinforcement_by_the_publisher_s_own_is_not_said_to_be_by_stories() -> None:
    run = {"data": DATA, "pretrain": {"config": {}}, "sft": trained()}
    told, own = trained(), trained()
    del told["inputs"]["data"]
    own["inputs"] = told["inputs"] | {"prompts": {"path": "prompts.jsonl"}, "reward": {"path": ["rewards:brief"]}}
    about = functools.partial(release.describe_data, "", base=None)
    assert release.STORIES in about(run | {"grpo": told}) and "- grpo: prompts of stories" in about(
        run | {"grpo": told}
    )
    assert "Text of the publisher's choice" in about(run | {"grpo": own})
    assert "- grpo: prompts of the publisher's choice" in about(run | {"grpo": own})
    assert "by the story checkers (GRPO)" in card_of({"grpo": told}, Base("b", True, "mit")).text
    card = card_of({"grpo": own}, Base("b", True, "mit")).text
    assert "by a reward function of the publisher's own (GRPO)" in card and "story checkers" not in card


def card_of(records: dict[str, dict[str, Any]], base: Base | None, **config: Any) -> ModelCard:
    last = {"versions": {}, "commit": None, "seconds": 1.0}
    last["machine"] = {"system": "Linux", "machine": "x86_64", "cpus": 2}
    facts = {
        "title": "T", "repo_id": "user/t", "license": "mit", "base": base, "language": "en", "about_data": "Text.",
        "parameters": 1, "records": {name: last | record for name, record in records.items()}, "results": "None.",
        "example": "Hi", "answer": "Ho", "eval_results": (), "checks": [],
    }  # fmt: skip
    changed = {key: config.pop(key) for key in list(config) if key in facts}
    return make_card(CardFacts(**facts | changed, config=config))


def test_a_model_that_was_fine_tuned_is_not_said_to_be_trained_from_random_weights() -> None:
    card = card_of({"dpo": trained() | {"data": THUMBS}}, Base("user/base", True, "mit"), hidden_size=8)
    assert "fine-tuned from `user/base`: optimization by answers that were liked or not (KTO)." in card.text
    assert not re.search("random weights|code of|hf_scratch|stock Qwen3|preference optimization", card.text)
    assert "loss_type" not in card.text
    assert card.data.base_model == "user/base" and card.data.tags == ["conversational"]
    ours = card_of({"pretrain": trained() | {"metrics": {"step": 9}}, "dpo": trained()}, None, auto_map={})
    assert "trained from random weights: pretraining on text, then direct preference optimization. " in ours.text
    assert "loss_type sigmoid" in ours.text and "the code comes with the weights" in ours.text
    assert "base_model" not in ours.data.to_dict()


@pytest.mark.parametrize(
    "example", ["Tell me of a 🦊.", 'Say "it\'s"\n\tdone \\ ok', "\u2028 \ud83e half", "{x} ``` </b>"]
)
def test_the_card_s_example_is_python_whatever_it_says(example: str) -> None:
    text = card_of({"sft": trained()}, None, example=example).text
    line = next(line for line in text.splitlines() if line.startswith("messages = "))
    assert ast.literal_eval(line.removeprefix("messages = "))[0]["content"] == example


@pytest.mark.parametrize("owner", ["user", "user.name"])
def test_a_published_card_is_the_one_that_a_release_for_this_id_has(tmp_path: Path, owner: str) -> None:
    # The base's id begins with the released one, a neighbour's ends with it: both are other models.
    base = Base(f"{owner}/t-1.5", True, "mit")
    records = {"sft": trained()}
    own = f"\nBetter than {owner}/t.2, {owner}/t2 and the-{owner}/t, says {owner}/t.\n"
    (tmp_path / "model").mkdir()
    (tmp_path / "stage.json").write_text(json.dumps({"config": {"repo_id": f"{owner}/t"}}))
    released = tmp_path / "model" / "README.md"
    released.write_text(str(card_of(records, base, repo_id=f"{owner}/t", auto_map={})) + own)
    copy_for(Target("me/tale"), tmp_path / "model", tmp_path / "ready", tmp_path, None)
    said = (tmp_path / "ready" / "README.md").read_text()
    assert said == str(card_of(records, base, repo_id="me/tale", auto_map={})) + own.replace(
        f"says {owner}/t", "says me/tale"
    )
    assert f"says {owner}/t" in released.read_text()  # the release's own card is left


def test_the_licence_is_one_that_the_hub_takes() -> None:
    assert license_metadata("Apache-2.0") == {"license": "apache-2.0"}
    assert license_metadata("GPL-3.0-or-later") == {"license": "gpl-3.0"}
    assert license_metadata("public domain") == {"license": "other", "license_name": "public-domain"}
    assert license_metadata("My own: (v2)") == {"license": "other", "license_name": "my-own-v2"}
    card = card_of({"sft": trained()}, None, license="public domain")
    assert (card.data.license, card.data.license_name) == ("other", "public-domain")


def test_the_licence_is_that_of_what_was_fine_tuned(tmp_path: Path) -> None:
    imported, unknown = tmp_path / "imported", tmp_path / "unknown"
    imported.mkdir()
    unknown.mkdir()
    (imported / "config.json").write_text('{"model_type": "scratch"}')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    write_origin("Qwen/Qwen3-0.6B", tmp_path, imported)
    base = release.find_base({"sft": trained(str(imported)), "dpo": trained()})
    assert base == Base("Qwen/Qwen3-0.6B", True, "mit") and release.choose_license("", base) == "mit"
    assert release.find_base({"dpo": trained("user/base")}) == Base("user/base", True, "")  # offline
    assert release.find_base({"pretrain": {}, "sft": trained()}) is None
    assert release.choose_license("", None) == "apache-2.0"
    base = release.find_base({"sft": trained(str(unknown))})
    assert base == Base("unknown", False, "") and release.choose_license("cc0-1.0", base) == "cc0-1.0"
    with pytest.raises(ValueError, match="fine-tuned from unknown, whose licence is not known .* with --license"):
        release.choose_license("", base)
