"""Checkpoints as others have them, in 16 bits and with tokens of their own, keep what they say in every format.

llama.cpp and ONNX Runtime are the real ones; what 16 bits may differ by is what two attention kernels differ by.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen3Config

from hf_scratch import ScratchForCausalLM
from hf_scratch.export.original import Greedy, greedy
from hf_scratch.export.run import export
from hf_scratch.hub.exports import GREEDY, list_on_card
from hf_scratch.hub.verify import compare, make_reference, save_reference

TEXT = "Once upon a time a little fox lost a red kite. The owl said: it's there.\n" * 8
MakeModel = Callable[..., ScratchForCausalLM]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def half(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_model: MakeModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """A release in 16 bits, whose tokenizer has tokens that are not special, and which draws with a penalty."""
    folder = tmp_path_factory.mktemp("half") / "model"
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>"])
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "max_position_embeddings": 512}
    model = make_model(vocab_size=323, **sizes)
    model.generation_config = GenerationConfig(
        eos_token_id=[3, 0], pad_token_id=1, do_sample=True, repetition_penalty=1.3
    )
    model.to(request.param).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = ScratchForCausalLM.from_pretrained(folder, dtype="auto")
    save_reference(make_reference(model, tokenizer), folder, chats=request.param == torch.float16)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n\n## Results\n\nNone.\n")
    return folder


@pytest.mark.slow
def test_llama_cpp_takes_weights_in_16_bits_and_tokens_that_are_not_special(half: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    (tmp_path / "held_out.txt").write_text(TEXT[:300])
    measured = export(str(half), "gguf", None, tmp_path / "held_out.txt", print)["measured"]
    for found in measured.values():  # each file says what its rounding costs
        before, after = (float(number) for number in found.split("; ")[1].split(" bits")[0].split(" to "))
        assert after == pytest.approx(before, rel=0.01) and "of 300 bytes of held-out text" in found
        assert "greedy tokens" in found
    card = (half / "README.md").read_text()
    assert card.count(GREEDY) == 1 and measured["model-q8_0.gguf"] in card

    fields = gguf.GGUFReader(half / "gguf/model-q8_0.gguf").fields
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    kinds = {token: gguf.TokenType(kind).name for token, kind in zip(tokens, types, strict=True)}
    assert {kinds[token] for token in ("<think>", "</think>", "<tool_call>")} == {"USER_DEFINED"}
    assert {kinds[token] for token in ("<|im_end|>", "<|endoftext|>")} == {"CONTROL"} and kinds["fox"[0]] == "NORMAL"
    assert fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    # A base model read documents behind the bos token, one that was trained to chat read no such token since.
    chats = json.loads((half / "verification/reference.json").read_text())["chats"]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is not chats
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0


@pytest.mark.slow
@pytest.mark.parametrize("half", [torch.bfloat16], indirect=True, ids=str)
def test_onnx_takes_weights_in_16_bits_and_padded_texts_by_the_names_that_others_use(half: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    record = export(str(half), "onnx", None, None, print)
    assert "the same 20 greedy tokens through the cache" in record["measured"]["model.onnx"]
    folder = half / "onnx"
    assert type(AutoConfig.from_pretrained(folder)) is Qwen3Config and (folder / "generation_config.json").is_file()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    caches = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    named = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in caches)]
    assert [found.name for found in session.get_inputs()] == named
    assert [found.name for found in session.get_outputs()] == ["logits", *(f"present.{name}" for name in caches)]

    # A batch with padding on either side, as tokenizers make it.
    model = ScratchForCausalLM.from_pretrained(half, dtype=torch.float32).eval()
    for mask in (torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]), torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])):
        ids = torch.randint(4, 320, (2, 6), generator=torch.Generator().manual_seed(0))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        empty = {name: np.zeros((2, 2, 0, 16), dtype=np.float32) for name in named[3:]}
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = session.run(["logits"], {name: tensor.numpy() for name, tensor in given.items()} | empty)[0]
        for row in range(2):
            with torch.no_grad():
                alone = model(ids[row][mask[row] == 1].unsqueeze(0)).logits[0]
            assert np.abs(logits[row][mask[row].numpy() == 1] - alone.numpy()).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_16_bits_round_is_no_difference_and_what_they_do_not_is(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, dtype: torch.dtype
) -> None:
    make_model().to(dtype).save_pretrained(tmp_path)
    # Two kernels round in another order, as two kinds of processors do.
    observed = []
    for kernel in ("eager", "sdpa"):
        model = ScratchForCausalLM.from_pretrained(tmp_path, dtype="auto", attn_implementation=kernel)
        model.generation_config.pad_token_id = 1
        observed.append(make_reference(model, tiny_tokenizer).observed)
    one, two = observed
    difference = float((one["logits"] - two["logits"]).abs().max())
    assert (difference > 1e-5) is (dtype != torch.float32)
    assert all(check.passed for check in compare(one, two)), compare(one, two)

    def failed(**other: Any) -> set[str]:
        return {check.name for check in compare(one, two | other) if not check.passed}

    assert failed(logits=two["logits"] * 1.2) == {"logits equal"} | (
        set() if one["answer_ids"] == two["answer_ids"] else {"greedy answer equal"}
    )
    assert failed(weights="other") == {"weights equal, bit for bit"}
    assert "prompt encoded alike" in failed(prompt_ids=[*two["prompt_ids"], 5])
    other_words = failed(answer_ids=[*two["answer_ids"][:5], 7, 8])
    assert other_words == ({"greedy answer equal"} if dtype == torch.float32 else set())


def test_greedy_tokens_are_the_same_up_to_where_two_are_as_likely() -> None:
    said = Greedy([5, 6, 7], [1.0, 1e-5, 2.0])
    assert said.agrees([5, 6, 7]) and said.agrees([5, 9, 9]) and not said.agrees([9, 6, 7])
    assert not said.agrees([5, 6, 9]) and not said.agrees([5, 6])
    assert [said.parting(found) for found in ([5, 6, 7], [5, 9, 7], [5, 6])] == [3, 1, 2]


def test_greedy_tokens_are_the_model_s_own_whatever_its_settings_add(make_model: MakeModel) -> None:
    plain, model = make_model(), make_model()
    model.generation_config = GenerationConfig(do_sample=True, repetition_penalty=2.0, num_beams=2, eos_token_id=5)
    prompt = [5, 40, 41]
    expected = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=None)
    found = greedy(model, prompt, 20)
    assert found.tokens == expected[0, 3:].tolist() and min(found.margins) >= 0
    never = found.tokens[0]
    assert never not in greedy(model, prompt, 20, [never]).tokens


def test_the_card_explains_greedy_tokens_only_where_some_were_compared(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Name\n")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/export.json").write_text(json.dumps({"files": {"model.onnx": {"bytes": 1}}, "measured": {}}))
    list_on_card(tmp_path)
    assert GREEDY not in (tmp_path / "README.md").read_text()
