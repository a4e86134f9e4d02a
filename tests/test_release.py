"""A release works in a process that has never seen this package, says true things of itself, and else is not made."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, RepoCard
from safetensors.torch import load_file, save_file
from tiny_run import THUMBS, make_aligned, make_base, make_tokenizer_and_data, trained
from transformers import AutoTokenizer

from hf_scratch import ScratchForCausalLM
from hf_scratch.hub.check import Check, require
from hf_scratch.hub.files import check_files
from hf_scratch.hub.leaks import check_leaks
from hf_scratch.hub.publish import Plan, targets
from hf_scratch.hub.verify import Reference, load_reference, make_reference, verify
from training import eval_model, release


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, evaluated, and not yet released."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    make_tokenizer_and_data(run)
    make_base(run)
    make_aligned(run)
    models = [f"{name}={run / name / 'model'}" for name in ("pretrain", "sft", "dpo")]
    small = ["--num_prompts", "4", "--num_turns", "1", "--max_new_tokens", "8"]
    eval_model.main(["--output_dir", f"{run}/eval", "--data", f"{run}/data", "--models", *models, *small])
    return run


@pytest.fixture(scope="module")
def released(run: Path) -> Path:
    """The run's release."""
    names = ["--title", "Tiny stories", "--repo_id", "somebody/tiny-stories", "--stages", "base"]
    release.main(["--run", str(run), "--output_dir", f"{run}/release", *names])
    return run / "release"


def names_of_failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def change_a_weight(folder: Path) -> None:
    """Change one number of the model by the least that can be seen."""
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] += 1e-7
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ---- a release ----


@pytest.mark.slow
def test_a_release_holds_what_a_repository_needs(released: Path) -> None:
    model = {path.name for path in (released / "model").iterdir()}
    assert model == {
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "configuration_scratch.py", "custom_generate",
        "generation_config.json", "model.safetensors", "modeling_scratch.py", "tokenizer.json",
        "tokenizer_config.json", "training_record", "verification",
    }  # fmt: skip
    record = released / "model/training_record"
    assert {path.name for path in record.iterdir()} == {"tokenizer", "data", "pretrain", "sft", "dpo", "eval"}
    assert {path.name for path in (record / "eval").iterdir()} == {
        "stage.json", "results.json", "report.md", "loss.png"
    }  # fmt: skip
    assert (record / "dpo/metrics.jsonl").is_file() and (record / "dpo/stage.json").is_file()
    assert {path.name for path in released.iterdir()} == {"browser", "model", "space", "stage.json", "stages"}


@pytest.mark.slow
def test_the_stages_before_lie_beside_the_model(run: Path, released: Path) -> None:
    assert {path.name for path in (released / "stages").iterdir()} == {"base", "sft"}
    for stage, name in (("pretrain", "base"), ("sft", "sft")):
        weights = (released / "stages" / name / "model.safetensors").read_bytes()
        assert weights == (run / stage / "model/model.safetensors").read_bytes()
    stages = "base=somebody/tiny-stories@base sft=somebody/tiny-stories@sft"
    assert f'os.environ.get("STAGES", "{stages}")' in (released / "space/app.py").read_text()


@pytest.mark.slow
def test_a_released_model_decodes_fast_wherever_it_is_loaded(
    released: Path, run_without_hf_scratch: Callable[..., str]
) -> None:
    code = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.generate.func.__module__)
"""
    assert run_without_hf_scratch(code, released / "model").strip().endswith("generate")


@pytest.mark.slow
def test_the_last_stage_is_released(run: Path, released: Path) -> None:
    weights = (released / "model/model.safetensors").read_bytes()
    assert weights == (run / "dpo/model/model.safetensors").read_bytes()
    assert weights != (run / "sft/model/model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_card_parses_and_its_numbers_are_the_run_s(run: Path, released: Path) -> None:
    card = ModelCard.load(released / "model/README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag, card.data.language) == (
        "apache-2.0",
        "transformers",
        "text-generation",
        "en",
    )
    assert "custom_code" in card.data.tags
    results = json.loads((run / "eval/results.json").read_text())
    assert card.data.widget[0]["messages"][0]["content"] == results["samples"][0]["prompt"]
    for measured in results["models"].values():
        assert f"{measured['text']['bits_per_byte']:.4f}" in card.text
    assert f"{results['models']['dpo']['parameters']:,} parameters" in card.text
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["bits_per_byte"] == round(results["models"]["dpo"]["text"]["bits_per_byte"], 4)
    assert measured["followed"] == results["models"]["dpo"]["stories"]["followed"]["rate"]
    data = json.loads((run / "data/meta.json").read_text())
    assert f"{data['train']['documents']:,} documents, {data['train']['tokens']:,} tokens" in card.text
    assert "logits equal: bit-equal" in card.text
    assert re.search(r"greedy answer equal: \d+ tokens, (ends with an|cut off without an) end token", card.text)


@pytest.mark.slow
def test_an_earlier_stage_is_a_release_of_its_own(run: Path, released: Path) -> None:
    folder = released / "stages/base"
    assert (folder / "model.safetensors").read_bytes() == (run / "pretrain/model/model.safetensors").read_bytes()
    assert {path.name for path in (folder / "training_record").iterdir()} == {"tokenizer", "data", "pretrain", "eval"}
    card = ModelCard.load(folder / "README.md")
    assert "conversational" not in card.data.tags and "it was not trained to chat" in card.text
    results = json.loads((run / "eval/results.json").read_text())["models"]["pretrain"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["bits_per_byte"] == round(results["text"]["bits_per_byte"], 4)
    reference, last = (load_reference(path) for path in (folder, released / "model"))
    assert reference and last and not reference.chats and last.chats
    assert reference.observed["weights"] != last.observed["weights"]


@pytest.mark.slow
def test_every_stage_that_was_evaluated_can_be_published(run: Path, released: Path, tmp_path: Path) -> None:
    """`publish --stages base,sft` of a release for which nobody had asked for stages, as the quickstart makes it."""
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("release")))
    release.main(["--run", str(copy), "--output_dir", f"{copy}/release"])
    found = targets(copy / "release", Plan(repo_id="user/tiny", stages=["base", "sft"]))
    assert [target.branch for target, _ in found] == ["base", "sft", "main"]
    references = [load_reference(folder) for _, folder in found]
    assert [reference and reference.chats for reference in references] == [False, True, True]
    assert all((folder / "README.md").is_file() for _, folder in found)


@pytest.mark.slow
def test_a_stage_that_was_not_evaluated_is_named_with_what_to_do(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("release")))
    results = json.loads((copy / "eval/results.json").read_text())
    del results["models"]["pretrain"]
    (copy / "eval/results.json").write_text(json.dumps(results))
    release.main(["--run", str(copy), "--output_dir", f"{copy}/release"])
    assert (copy / "release/stages/base/model.safetensors").is_file()  # the Space compares it all the same
    with pytest.raises(ValueError, match="stages/base was copied only.* training.release .*--stages base") as error:
        targets(copy / "release", Plan(repo_id="user/tiny", stages=["base"]))
    words = re.search("`python -m training.release (.*)`", str(error.value))[1].split()
    with pytest.raises(SystemExit, match="holds no results of .*pretrain/model.*training.eval_model"):
        release.main(words)


def test_a_record_keeps_no_path_of_this_machine(tmp_path: Path) -> None:
    sources = [{"name": "books", "files": ["/home/ada/books/*.txt", "corpus/a.txt"], "license": "mit"}]
    steps = [{"decontaminate": {"files": "/mnt/eval/arc.jsonl"}}, {"language": {"model": "file:///home/ada/lid.bin"}}]
    config = {"sources": sources, "steps": steps, "executor_options": {"env_command": "source /home/ada/v/activate"}}
    inputs = {"tokenizer": {"path": "/home/ada/tokenizer", "sha256": "1"}}
    config |= {"dataset": "user/text", "work_dir": "s3://bucket/home/work"}
    kept = release.without_paths({"config": config, "inputs": inputs})
    assert kept["config"]["sources"] == [{"name": "books", "files": ["*.txt", "corpus/a.txt"], "license": "mit"}]
    assert kept["config"]["steps"] == [{"decontaminate": {"files": "arc.jsonl"}}, {"language": {"model": "lid.bin"}}]
    assert kept["config"]["executor_options"] == {"env_command": "source activate"}
    assert (kept["config"]["dataset"], kept["config"]["work_dir"]) == ("user/text", "s3://bucket/home/work")
    (tmp_path / "stage.json").write_text(json.dumps(kept))
    assert check_leaks(tmp_path, [tmp_path / "stage.json"]).passed and kept["inputs"] == {"tokenizer": "1"}


@pytest.mark.slow
def test_a_run_with_sources_that_fine_tuned_another_model_is_released(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("release", "pretrain")))
    for stage, change in {
        "data": {"config": {"dataset": None, "sources": [{"name": "books", "files": "/home/ada/books/*.txt"}]}},
        "sft": {"inputs": trained("user/base", "chats.jsonl")["inputs"]},
        "dpo": {"data": THUMBS},
    }.items():
        path = copy / stage / "stage.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit, match="fine-tuned from user/base, whose licence is not known here"):
        release.main(["--run", str(copy), "--output_dir", f"{copy}/release"])
    release.main(["--run", str(copy), "--output_dir", f"{copy}/release", "--license", "mit"])
    card = ModelCard.load(copy / "release/model/README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "user/base")
    assert "Text of the publisher's choice" in card.text and "(KTO)" in card.text
    precisions = {json.loads((copy / stage / "stage.json").read_text())["precision"] for stage in ("sft", "dpo")}
    assert all(f", precision {precision} |" in card.text for precision in precisions)
    assert '"files": "*.txt"' in (copy / "release/model/training_record/data/stage.json").read_text()


@pytest.mark.slow
def test_the_card_s_code_prints_the_card_s_answer(released: Path, run_without_hf_scratch: Callable[..., str]) -> None:
    text = ModelCard.load(released / "model/README.md").text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    code = code.replace('"somebody/tiny-stories"', repr(str(released / "model")))
    printed = run_without_hf_scratch(code)
    shown = re.search(r"It prints\n\n(.*?)\n\n`sanitize", text, re.DOTALL)[1]
    as_text = "\n".join(line.removeprefix("> ") for line in shown.splitlines())
    assert printed.strip() == as_text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()


@pytest.mark.slow
def test_the_printed_pipeline_works(released: Path, run_without_hf_scratch: Callable[..., str]) -> None:
    lines = release.how_to_talk(released, released.parent).splitlines()
    code = "\n".join(line.strip() for line in lines if line.startswith("    ") and "MODEL_ID" not in line)
    assert "pipeline" in code
    code = code.replace("chat([", "out = chat([").replace("}])", "}], max_new_tokens=4)")
    assert "assistant" in run_without_hf_scratch(code + "\nprint(out[0]['generated_text'][-1]['role'])")


@pytest.mark.slow
def test_nothing_in_a_release_tells_of_this_machine(run: Path, released: Path) -> None:
    here = {str(run.parent), str(Path.cwd()), str(Path.home()), str(Path(release.__file__).parent)}
    for path in released.rglob("*"):
        # The record beside the release stays on this machine, the folders `model` and `space` do not.
        if path.is_file() and path.parent != released:
            content = path.read_bytes()
            assert not [known for known in here if known.encode() in content], path


@pytest.mark.slow
def test_the_space_is_pointed_to_the_model(released: Path) -> None:
    card = RepoCard.load(released / "space/README.md")
    assert (card.data.title, card.data.models, card.data.sdk) == ("Tiny stories", ["somebody/tiny-stories"], "gradio")
    assert 'os.environ.get("MODEL_ID", "somebody/tiny-stories")' in (released / "space/app.py").read_text()
    assert (released / "space/requirements.txt").is_file()


@pytest.mark.slow
def test_released_again_it_says_only_how_to_talk(
    run: Path, released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--title", "Tiny stories", "--repo_id", "somebody/tiny-stories", "--stages", "base"]
    release.main(["--run", str(run), "--output_dir", str(released), *names])
    out = capsys.readouterr().out
    assert "nothing has changed, skipped" in out and f"MODEL_ID={released}/model python spaces_app/app.py" in out


@pytest.mark.slow
def test_a_release_that_fails_a_check_leaves_the_old_one(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("release", "modeling_scratch.py"))
    (copy / "release/model").mkdir(parents=True)
    (copy / "release/model/old").touch()
    models = [f"{name}={copy / name / 'model'}" for name in ("dpo",)]
    eval_model.main(["--output_dir", f"{copy}/eval", "--data", f"{copy}/data", "--models", *models])
    with pytest.raises(SystemExit, match="the code that config.json names is there .modeling_scratch.py"):
        release.main(["--run", str(copy), "--output_dir", f"{copy}/release"])
    assert {path.name for path in (copy / "release").rglob("*")} == {"stage.json", "model", "old"}


@pytest.mark.slow
def test_numbers_of_another_model_are_not_published(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("release"))
    change_a_weight(copy / "dpo/model")
    with pytest.raises(SystemExit, match="holds no results of .*dpo/model"):
        release.main(["--run", str(copy), "--output_dir", f"{copy}/release"])
    assert not (copy / "release").exists()


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no trained model"):
        release.main(["--run", str(tmp_path), "--output_dir", str(tmp_path / "release")])


def test_an_unfinished_stage_is_not_passed_over(tmp_path: Path) -> None:
    for stage, status in (("pretrain", "done"), ("sft", "running")):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text(json.dumps({"status": status}))
    with pytest.raises(SystemExit, match="sft is not finished"):
        release.main(["--run", str(tmp_path), "--output_dir", str(tmp_path / "release")])


# ---- verification ----


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    """A model folder, and what the model in it says."""
    run = tmp_path_factory.mktemp("good")
    make_tokenizer_and_data(run)
    make_base(run)
    folder = run / "pretrain/model"
    model, tokenizer = ScratchForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return folder, make_reference(model, tokenizer)


@pytest.fixture
def folder(good: tuple[Path, Reference], tmp_path: Path) -> Path:
    """A copy of the model folder to tamper with."""
    return Path(shutil.copytree(good[0], tmp_path / "model"))


@pytest.mark.slow
def test_a_changed_weight_and_an_altered_template_are_found(folder: Path, good: tuple[Path, Reference]) -> None:
    change_a_weight(folder)
    template = folder / "chat_template.jinja"
    template.write_text("Obey.\n" + template.read_text())
    assert names_of_failed(verify(folder, good[1])) >= {"weights equal, bit for bit", "prompt encoded alike"}


@pytest.mark.slow
def test_a_missing_weight_is_found_without_a_reference(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert names_of_failed(verify(folder)) == {"AutoModelForCausalLM loads, all weights present"}


@pytest.mark.slow
def test_a_missing_template_is_found(folder: Path, good: tuple[Path, Reference]) -> None:
    (folder / "chat_template.jinja").unlink()
    failed = [check for check in verify(folder, good[1]) if not check.passed]
    assert [check.name for check in failed] == ["chat template renders"]
    with pytest.raises(ValueError, match="the folder failed 1 of 1 checks: chat template renders .*chat_template"):
        require(failed, "the folder")


@pytest.mark.parametrize("import_", ["from hf_scratch.model.configuration_scratch", "from ..configuration_scratch"])
def test_code_that_imports_what_does_not_ship_is_found(folder: Path, import_: str) -> None:
    code = folder / "modeling_scratch.py"
    code.write_text(code.read_text().replace("from .configuration_scratch", import_))
    assert names_of_failed(check_files(folder)) == {"the code imports transformers' stack and itself only"}


@pytest.mark.parametrize(
    ("name", "content", "failed"),
    [
        ("optimizer.pt", b"", "no pickle"),
        ("notes.txt", b"\x80\x04K\x01.", "no pickle"),
        ("notes.txt", b"PK\x03\x04", "no pickle"),
        ("notes.txt", b"token = hf_" + b"aB3" * 11, "no secrets and no paths of this machine"),
        ("training_record/log.json", b'{"data": "/home/ada/corpus.txt"}', "no secrets and no paths of this machine"),
        ("notes.txt", rb"C:\Users\ada\corpus.txt", "no secrets and no paths of this machine"),
    ],
)
def test_a_file_that_must_not_be_there_is_found(folder: Path, name: str, content: bytes, failed: str) -> None:
    assert names_of_failed(check_files(folder)) == set()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    assert names_of_failed(verify(folder)) == {failed}


@pytest.mark.parametrize("missing", ["modeling_scratch.py", "config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_found(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    failed = {"model.safetensors": "weights are safetensors"}.get(missing, "the code that config.json names is there")
    assert names_of_failed(verify(folder)) == {failed}
