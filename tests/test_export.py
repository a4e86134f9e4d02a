"""Each export is loaded by the program it is for and says what the original says; the way back gives the weights.

llama.cpp, ONNX Runtime and torchao are the real ones.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_tokenizer_and_data
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3ForCausalLM,
)

from hf_scratch import ScratchForCausalLM
from hf_scratch.export.original import differences, load_original, read_held_out
from hf_scratch.export.run import export, require_replaceable
from hf_scratch.export.transformers import import_stock
from hf_scratch.hub.exports import BEGIN, FORMATS, check_exports, list_on_card, read_records, write_record
from hf_scratch.hub.verify import load_reference, make_reference, save_reference
from hf_scratch.tokenizer import QWEN2_PATTERN, encode_texts

TEXT = "Once upon a time a little fox lost a red kite. The owl said: it's there.\n" * 8


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A release of a model that has seen the text a few times, so that it is sure of some tokens."""
    folder = tmp_path_factory.mktemp("release") / "model"
    model = make_model(
        hidden_size=64, intermediate_size=256, head_dim=16, max_position_embeddings=512, initializer_range=0.05
    )
    ids = torch.tensor([[0, *encode_texts(tiny_tokenizer, [TEXT])[0]]])[:, :400]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(20):
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().generation_config = GenerationConfig(eos_token_id=[3, 0], pad_token_id=1, do_sample=False)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    save_reference(make_reference(model, tiny_tokenizer), folder, chats=False)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n\n## Results\n\nNone.\n")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text(TEXT[:300])
    return path


@pytest.mark.slow
def test_a_stock_checkpoint_gives_equal_logits_without_remote_code(
    source: Path, run_without_hf_scratch: Callable[..., str], tmp_path: Path
) -> None:
    for name in ("transformers", "transformers.tmp"):
        (source / name).mkdir()
        (source / name / "old").write_text("of an earlier export")
    write_record(source / "transformers", "transformers", "sha", {}, {})
    record = export(str(source), "transformers", None, None, print)
    assert record["measured"] == {"": "logits bit-equal, greedy answer equal"}
    assert not (source / "transformers/old").exists() and (source / "transformers.tmp/old").exists()
    assert not [path.name for path in source.iterdir() if path.name.startswith(".")]
    shutil.rmtree(source / "transformers.tmp")
    assert json.loads((source / "transformers/config.json").read_text())["model_type"] == "qwen3"
    assert not list((source / "transformers").glob("*.py"))
    code = """
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""
    assert run_without_hf_scratch(code, source / "transformers").strip() == "Qwen3ForCausalLM"
    # And back again.
    back = tmp_path / "runs" / "back"
    checks = import_stock(str(source / "transformers"), "main", back)
    assert {check.name for check in checks} >= {"logits equal", "weights equal, bit for bit"}
    assert type(AutoModelForCausalLM.from_pretrained(back)) is ScratchForCausalLM
    assert (back / "modeling_scratch.py").is_file()


@pytest.mark.slow
def test_llama_cpp_says_what_transformers_says(source: Path) -> None:
    record = export(str(source), "gguf", None, None, print)
    measured = record["measured"]
    not_measured = "bits per byte not measured, for want of held-out text"
    assert measured["model-f32.gguf"] == f"the same 200 greedy tokens in llama.cpp; {not_measured}"
    assert set(measured) == {"model-f32.gguf", "model-f16.gguf", "model-q8_0.gguf"}
    sizes = [record["files"][f"model-{name}.gguf"]["bytes"] for name in ("f32", "f16", "q8_0")]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]
    modelfile = (source / "gguf/Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-q8_0.gguf\nTEMPLATE") and 'PARAMETER stop "<|im_end|>"' in modelfile


@pytest.mark.slow
def test_eight_bits_cost_little(source: Path, text: Path) -> None:
    record = export(str(source), "int8", None, text, print)
    found = record["measured"][""]
    assert "of 300 bytes of held-out text" in found and found in (source / "README.md").read_text()
    change = float(found.split("(")[1].split("%")[0])
    assert abs(change) <= 1.0, found
    stored = load_file(source / "int8/model.safetensors")
    original = load_file(source / "model.safetensors")
    size = {name: t.nbytes for name, t in original.items() if "proj" in name}
    eight = sum(tensor.nbytes for name, tensor in stored.items() if "proj" in name)
    assert eight < 0.28 * sum(size.values())  # a quarter, and a scale a row


@pytest.mark.slow
def test_eight_bits_that_cost_much_are_refused(source: Path, text: Path, make_model: Callable[..., Any]) -> None:
    original = load_original(source, text)
    worse = copy.deepcopy(original.model)
    with torch.no_grad():
        worse.model.norm.weight.neg_()
    with pytest.raises(ValueError, match=r"8 bits make bits per byte of held-out text .* worse; 1% is the most"):
        differences(original, worse, original.reference.observed)


@pytest.mark.slow
def test_held_out_text_is_that_of_the_run(tmp_path: Path) -> None:
    make_tokenizer_and_data(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    found = read_held_out(tmp_path / "release/model", None, tokenizer)
    expected = json.loads((tmp_path / "data/meta.json").read_text())["val"]
    assert found and (len(found.starts), int(found.num_bytes.sum())) == (expected["documents"], expected["bytes"])
    assert len(found.tokens) == expected["tokens"]
    assert read_held_out(tmp_path / "elsewhere/release/model", None, tokenizer) is None
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="empty.txt is empty; give a file with text"):
        read_held_out(tmp_path, tmp_path / "empty.txt", tokenizer)


@pytest.mark.slow
def test_onnx_runtime_agrees_with_and_without_its_cache(source: Path) -> None:
    record = export(str(source), "onnx", None, None, print)
    assert "greedy tokens through the cache" in record["measured"]["model.onnx"]
    assert float(record["measured"]["model.onnx"].split("at most ")[1].split(",")[0]) <= 1e-4


@pytest.mark.long
def test_an_untied_checkpoint_of_half_precision_goes_both_ways(
    make_model: Callable[..., Any],
    make_stock_twin: Callable[[ScratchForCausalLM], Qwen3ForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    stock = make_stock_twin(make_model(tie_word_embeddings=False)).to(torch.float16)
    stock.generation_config = GenerationConfig(eos_token_id=3, pad_token_id=1)
    stock.save_pretrained(tmp_path / "stock")
    tiny_tokenizer.save_pretrained(tmp_path / "stock")
    import_stock(str(tmp_path / "stock"), "main", tmp_path / "ours")
    export(str(tmp_path / "ours"), "transformers", tmp_path / "again", None, print)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "again"))
    assert before.keys() == after.keys() and "lm_head.weight" in after
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tokenizer_that_llama_cpp_would_read_differently_is_refused() -> None:
    pytest.importorskip("xllamacpp")
    from hf_scratch.export.gguf import pattern_name

    def backend(pattern: str, normalizer: Any = None) -> dict[str, Any]:
        split = {"type": "Split", "pattern": {"Regex": pattern}}
        return {"normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}

    assert pattern_name(backend(QWEN2_PATTERN)) == "qwen2"
    for wrong in (
        backend(r"\s+"),
        backend(QWEN2_PATTERN, {"type": "Lowercase"}),
        backend("") | {"pre_tokenizer": None},
    ):
        with pytest.raises(ValueError, match="does not know how this tokenizer splits"):
            pattern_name(wrong)


def test_ollama_s_template_writes_the_prompt_that_the_chat_template_writes(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    pytest.importorskip("xllamacpp")
    from hf_scratch.export.gguf import CHATML

    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A\nB"}]
    messages += [{"role": "assistant", "content": "C"}, {"role": "user", "content": "D"}]
    template = CHATML.removeprefix('TEMPLATE """').removesuffix('"""\n')
    begin, turn, rest = re.fullmatch(r"({{- range \.Messages }})(.*?){{ end }}(.*)", template, re.DOTALL).groups()
    turns = [turn.replace("{{ .Role }}", said["role"]).replace("{{ .Content }}", said["content"]) for said in messages]
    assert begin and "{{" not in "".join(turns) + rest
    expected = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert "".join(turns) + rest == expected


@pytest.mark.slow
def test_weights_that_changed_after_the_release_are_not_exported(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns(*FORMATS)))
    reference = folder / "verification/reference.json"
    content = json.loads(reference.read_text())
    content["observed"]["weights"] = "0"
    reference.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="are not those that the release was made with"):
        export(str(folder), "transformers", None, None, print)
    assert not (folder / "transformers").exists()


def test_the_card_lists_each_format_once_with_size_and_difference(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Name\n\nUse.\n\n## Results\n\nNone.\n")
    for size in (1_000_000, 2_500_000):
        for kind, name in (("transformers", ""), ("gguf", "model-f32.gguf")):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / (name or "model.safetensors")).write_bytes(b"x" * size)
            write_record(tmp_path / kind, kind, "sha", {name: f"differs by {size}"}, {})
        list_on_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count(BEGIN) == 1 and card.count("## Results") == 1 and "differs by 1000000" not in card
    assert "| `gguf/model-f32.gguf` | llama.cpp, Ollama, LM Studio | 2.5 MB | differs by 2500000 |" in card
    assert card.index("Use.") < card.index(BEGIN) < card.index("## Results")
    assert all(check.passed for check in check_exports(tmp_path, "sha"))
    (tmp_path / "gguf/model-f32.gguf").write_bytes(b"y")
    assert [check.passed for check in check_exports(tmp_path, "sha")] == [True, False]
    assert read_records(tmp_path).keys() == {"transformers", "gguf"}


@pytest.mark.parametrize("held", ["notes.txt", "an export to another format", "an export and notes.txt"])
def test_an_export_replaces_nothing_but_an_export_to_the_same_format(
    tmp_path: Path, make_model: Callable[..., Any], held: str
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    folder = tmp_path / "runs"
    folder.mkdir()
    if "export" in held:
        (folder / "model.safetensors").write_text("weights")
        write_record(folder, "transformers" if "and" in held else "int8", "sha", {}, {})
    if "notes" in held:
        (folder / "notes.txt").write_text("years of work")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="runs holds .*, which is no part of an export to transformers; give a new"):
        export(str(tmp_path / "model"), "transformers", folder, None, print)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_an_empty_folder_and_an_older_export_are_replaced(tmp_path: Path) -> None:
    require_replaceable(tmp_path / "nothing", "gguf")
    require_replaceable(tmp_path, "gguf")
    (tmp_path / "model-f32.gguf").write_text("old")
    write_record(tmp_path, "gguf", "sha", {}, {})
    require_replaceable(tmp_path, "gguf")


def test_a_reference_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "verification").mkdir()
    (tmp_path / "verification/reference.json").write_text("{")
    with pytest.raises(ValueError, match="verification cannot be read .*make the release again"):
        load_reference(tmp_path)
    assert load_reference(tmp_path / "nothing") is None
