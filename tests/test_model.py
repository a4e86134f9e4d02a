"""The model computes what Qwen3 computes, trains as Trainer and TRL expect, and refuses a config that cannot work.

Parity is with transformers' own `Qwen3ForCausalLM` on the same weights, in float32, for logits, loss and gradients.
"""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_scratch import ScratchConfig, ScratchForCausalLM, ScratchModel

MakeModel = Callable[..., ScratchForCausalLM]
MakeStockTwin = Callable[[ScratchForCausalLM], Qwen3ForCausalLM]
EXACT = {"rtol": 1e-5, "atol": 1e-6}


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 320, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("_orig_mod."): parameter.grad for name, parameter in model.named_parameters()}


def assert_same_step(model: torch.nn.Module, other: torch.nn.Module, **inputs: object) -> None:
    """Logits, loss and each parameter's gradient are the same, and no gradient is zero."""
    outputs, expected = model(**inputs), other(**inputs)
    assert_close(outputs.logits, expected.logits, **EXACT)
    assert_close(outputs.loss, expected.loss, **EXACT)
    outputs.loss.backward()
    expected.loss.backward()
    assert_close(gradients(model), gradients(other), **EXACT)
    assert all(gradient.abs().max() > 0 for gradient in gradients(model).values()), "a parameter is not trained"


# ---- the maths ----


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_loss_and_gradients_equal_qwen3(
    make_model: MakeModel, make_stock_twin: MakeStockTwin, attention: str, padding: str, tied: bool
) -> None:
    model = make_model(attention, tie_word_embeddings=tied)
    inputs = {"input_ids": random_ids(3, 12)}
    inputs["labels"] = inputs["input_ids"].clone()
    if padding != "none":
        kept = torch.tensor([12, 9, 5])[:, None]
        column = torch.arange(12) if padding == "right" else torch.arange(12).flip(0)
        inputs["attention_mask"] = (column < kept).long()
        inputs["labels"][inputs["attention_mask"] == 0] = -100
    assert_same_step(model, make_stock_twin(model), **inputs)


@pytest.mark.parametrize("key_value_heads", [1, 4])
def test_any_grouping_of_heads_equals_qwen3(
    make_model: MakeModel, make_stock_twin: MakeStockTwin, key_value_heads: int
) -> None:
    model = make_model(num_key_value_heads=key_value_heads)
    ids = random_ids(2, 10)
    assert_same_step(model, make_stock_twin(model), input_ids=ids, labels=ids)


def test_yarn_rope_equals_qwen3_and_differs_from_the_default(
    make_model: MakeModel, make_stock_twin: MakeStockTwin
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    model = make_model(rope_parameters=rope)
    ids = random_ids(2, 40)
    assert_same_step(model, make_stock_twin(model), input_ids=ids, labels=ids)
    assert not torch.allclose(model(ids).logits, make_model()(ids).logits, atol=1e-2)


def test_a_qwen3_checkpoint_loads_into_scratch(
    make_model: MakeModel, make_stock_twin: MakeStockTwin, tmp_path: Path
) -> None:
    twin = make_stock_twin(make_model())
    twin.save_pretrained(tmp_path)
    ids = random_ids(2, 10)
    assert_close(ScratchForCausalLM.from_pretrained(tmp_path)(ids).logits, twin(ids).logits, **EXACT)
    twin.config.attention_bias = True
    twin.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attention_bias=True .* needs attention_bias=False"):
        ScratchForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_with_its_config_edited_is_a_stock_qwen3(tiny_model: ScratchForCausalLM, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is Qwen3ForCausalLM
    assert not any(report.values()), report
    ids = random_ids(2, 10)
    assert_close(stock(ids).logits, tiny_model(ids).logits, **EXACT)


@given(data=st.data())
def test_a_token_never_changes_an_earlier_logit(tiny_model: ScratchForCausalLM, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 24))
    position = data.draw(st.integers(0, length - 1))
    ids, other = random_ids(1, length), random_ids(1, length, seed=1)
    other[:, :position] = ids[:, :position]
    other[:, position] = (ids[:, position] + 1) % 320
    with torch.no_grad():
        logits, changed = tiny_model(ids).logits, tiny_model(other).logits
    assert_close(changed[:, :position], logits[:, :position], **EXACT)
    assert not torch.allclose(changed[:, position], logits[:, position], atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), use_cache=st.booleans())
def test_packed_documents_equal_separate_ones(
    make_model: MakeModel, attention: str, lengths: list[int], use_cache: bool
) -> None:
    model = make_model(attention)
    documents = [random_ids(1, length, seed=i) for i, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(torch.cat(documents, dim=1), position_ids=positions, use_cache=use_cache).logits
        separate = torch.cat([model(document).logits for document in documents], dim=1)
    assert_close(packed, separate, rtol=1e-5, atol=1e-5)  # other lengths, other order of summation


# ---- the contract with Trainer, TRL and generate ----


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 4])])
def test_logits_are_the_head_on_the_last_hidden_state(
    tiny_model: ScratchForCausalLM, keep: int | torch.Tensor
) -> None:
    ids = random_ids(2, 7)
    hidden = tiny_model.model(ids).last_hidden_state
    kept = hidden[:, keep] if isinstance(keep, torch.Tensor) else hidden[:, -keep:]
    assert_close(tiny_model(ids, logits_to_keep=keep).logits, tiny_model.lm_head(kept), **EXACT)


def test_loss_is_normalised_by_the_items_of_the_whole_batch(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(2, 8)
    mean = tiny_model(ids, labels=ids).loss
    assert_close(tiny_model(ids, labels=ids, num_items_in_batch=56).loss, mean * 14 / 56)
    # How Trainer decides whether to send the count, and whether labels are counted shifted.
    forward = inspect.signature(ScratchForCausalLM.forward)
    assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in forward.parameters.values())
    assert tiny_model.loss_type == "ForCausalLM"


def test_hidden_states_and_attentions_are_recorded_on_request(make_model: MakeModel) -> None:
    model, ids = make_model("eager"), random_ids(2, 6)
    plain, outputs = model(ids), model(ids, output_hidden_states=True, output_attentions=True)
    assert plain.hidden_states is None and plain.attentions is None
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(2, 6, 48)] * 3
    assert_close(outputs.hidden_states[0], model.model.embed_tokens(ids))
    assert_close(outputs.hidden_states[-1], model.model(ids).last_hidden_state)
    for weights in outputs.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 4, 6))
        assert weights.triu(1).abs().max() == 0


def test_activation_checkpointing_computes_twice_and_changes_nothing(make_model: MakeModel) -> None:
    model, plain, ids = make_model().train(), make_model().train(), random_ids(2, 9)
    calls = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    assert_same_step(model, plain, input_ids=ids, labels=ids)
    assert len(calls) == 2 * model.config.num_hidden_layers


def test_attention_dropout_acts_in_training_only(make_model: MakeModel) -> None:
    model, ids = make_model(attention_dropout=0.5), random_ids(2, 9)
    assert_close(model(ids).logits, make_model()(ids).logits)
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits, atol=1e-3)


def test_embeddings_replace_ids_and_exactly_one_is_given(tiny_model: ScratchForCausalLM) -> None:
    ids = random_ids(2, 5)
    embeddings = tiny_model.get_input_embeddings()(ids)
    assert_close(tiny_model(inputs_embeds=embeddings).logits, tiny_model(ids).logits)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            tiny_model(**arguments)


def test_any_registered_kernel_runs_and_gets_the_keywords_of_the_call(make_model: MakeModel) -> None:
    seen = []

    def kernel(*tensors: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.append((kwargs.pop("marker"), kwargs["scaling"], kwargs["dropout"]))
        return sdpa_attention_forward(*tensors, **kwargs)

    AttentionInterface.register("scratch_test_kernel", kernel)
    AttentionMaskInterface.register("scratch_test_kernel", sdpa_mask)
    ids = random_ids(2, 6)
    assert_close(make_model("scratch_test_kernel")(ids, marker="from the head").logits, make_model()(ids).logits)
    assert seen == [("from the head", 8**-0.5, 0.0)] * 2  # as packing and vLLM hand their metadata to the kernel


def test_heads_split_over_ranks_add_up_to_the_whole(make_model: MakeModel) -> None:
    # What tensor parallelism does with the plan: q, k, v by rows, o by columns, the norms whole, and a sum at the end.
    ids, model = random_ids(2, 6), make_model()
    hidden = model.model.embed_tokens(ids)
    inputs = {"position_embeddings": model.model.rotary_emb(hidden, torch.arange(6)[None]), "attention_mask": None}
    whole, _ = model.model.layers[0].self_attn(hidden, **inputs)
    parts = []
    for rank in range(2):
        attention = make_model().model.layers[0].self_attn
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(attention, name)
            linear.weight = torch.nn.Parameter(linear.weight.chunk(2, dim=1 if name == "o_proj" else 0)[rank])
        parts.append(attention(hidden, **inputs)[0])
    assert_close(sum(parts), whole, **EXACT)


def test_parallel_plans_name_modules_that_exist(tiny_model: ScratchForCausalLM) -> None:
    base = {re.sub(r"\.\d+", ".*", name) for name, _ in tiny_model.model.named_modules()}
    head = {name for name, _ in tiny_model.named_modules()}
    assert set(ScratchConfig.base_model_tp_plan) <= base
    assert set(ScratchConfig.base_model_pp_plan) | set(ScratchConfig.base_model_fsdp_plan) <= base
    assert {*ScratchForCausalLM._tp_plan, *ScratchForCausalLM._pp_plan, *ScratchForCausalLM._fsdp_plan} <= head
    # Each matrix of a layer has its place: one that the plan forgot would be whole on every rank.
    linear = {name for name, module in tiny_model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {re.sub(r"\.\d+", ".*", name) for name in linear} <= set(ScratchConfig.base_model_tp_plan)
    assert {type(layer).__name__ for layer in tiny_model.model.layers} == set(ScratchModel._no_split_modules)


@pytest.mark.slow
def test_compiles_as_one_graph_forward_and_backward(make_model: MakeModel) -> None:
    # Any graph break is an error of the tracer, which all backends share; this one needs no C++ compiler.
    model, ids = make_model(), random_ids(2, 8)
    compiled = torch.compile(make_model(), fullgraph=True, backend="aot_eager")
    assert_same_step(compiled, model, input_ids=ids, labels=ids, use_cache=False)


# ---- weights: first values, saving, loading ----


def test_first_weights(tiny_config: ScratchConfig) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 8}
    model = ScratchForCausalLM(ScratchConfig(**{**tiny_config.to_dict(), **sizes, "initializer_range": 0.02}))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.all(parameter == 1), name
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = 0.02 / (2 * 8) ** 0.5 if residual else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(parameter.mean().item()) < 0.05 * expected, name
    embeddings = model.get_input_embeddings().weight
    assert torch.all(embeddings[1] == 0), "the pad token's row"
    assert embeddings[0].abs().max() > 0


@pytest.mark.parametrize("special", [{"eos_token_id": 1}, {"eos_token_id": [3, 1]}, {"bos_token_id": 1}])
@pytest.mark.parametrize("tied", [True, False])
def test_a_separator_that_also_pads_is_learnt(
    make_model: MakeModel, tmp_path: Path, tied: bool, special: dict[str, object]
) -> None:
    make_model(tie_word_embeddings=tied, **special).save_pretrained(tmp_path)
    for model in (make_model(tie_word_embeddings=tied, **special), ScratchForCausalLM.from_pretrained(tmp_path)):
        row = model.get_input_embeddings().weight[1].detach().clone()
        assert row.abs().max() > 0, "a token with a meaning of its own begins as the others do"
        model.model(torch.tensor([[1, 5, 6]])).last_hidden_state.sum().backward()
        assert model.get_input_embeddings().weight.grad[1].abs().max() > 0
    only_pads = make_model(tie_word_embeddings=tied)
    only_pads.model(torch.tensor([[1, 5, 6]])).last_hidden_state.sum().backward()
    assert only_pads.get_input_embeddings().weight.grad[1].abs().max() == 0


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_and_tied_ones_are_saved_once(make_model: MakeModel, tmp_path: Path, tied: bool) -> None:
    model, ids = make_model(tie_word_embeddings=tied), random_ids(2, 8)
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in names) is not tied
    assert names | {"lm_head.weight"} == set(model.state_dict()), "buffers are rebuilt, not saved"
    loaded, report = ScratchForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    base = ScratchModel.from_pretrained(tmp_path)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_rotary_frequencies_are_rebuilt_in_float32(tiny_model: ScratchForCausalLM, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = ScratchForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.model.layers[0].self_attn.q_proj.weight.dtype is dtype
        expected = 10000.0 ** (-torch.arange(0, 8, 2).float() / 8)  # arXiv:2104.09864, section 3.2.2
        assert_close(loaded.model.rotary_emb.inv_freq, expected)
        assert_close(loaded.model.rotary_emb.original_inv_freq, expected)


def test_weights_that_a_checkpoint_lacks_are_initialised(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    norm = weights.pop("model.layers.0.self_attn.q_norm.weight")
    projection = weights.pop("model.layers.1.self_attn.o_proj.weight")
    assert torch.any(norm != 1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = ScratchForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report["missing_keys"]) == 2
    assert torch.all(loaded.model.layers[0].self_attn.q_norm.weight == 1)
    expected = 0.2 / (2 * 2) ** 0.5
    assert loaded.model.layers[1].self_attn.o_proj.weight.std().item() == pytest.approx(expected, rel=0.1)
    assert projection.shape == loaded.model.layers[1].self_attn.o_proj.weight.shape
    kept = loaded.model.layers[0].self_attn.o_proj.weight
    assert torch.equal(kept, weights["model.layers.0.self_attn.o_proj.weight"]), "loaded weights stay"


# ---- the configuration ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5, "head_dim": None}, "num_attention_heads=5 does not .* use hidden_size=50"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide .*_heads=4; .*=4"),
        ({"hidden_sise": 64}, "hidden_sise=64 is not a field of ScratchConfig; did you mean hidden_size=64?"),
        ({"frobnicate": 1}, "frobnicate=1 is not a field of ScratchConfig; ScratchConfig has .*vocab_size"),
        ({"temperature": 0.7}, "temperature=0.7 is not a field"),
        ({"hidden_size": -48}, "hidden_size=-48 must be greater than 0; use for example hidden_size=768"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be greater than 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be greater than 0"),
        ({"head_dim": 0}, "head_dim=0 must be greater than 0; leave it out"),
        ({"initializer_range": -0.1}, "initializer_range=-0.1 must be greater than 0"),
        ({"head_dim": 15}, "head_dim=15 is odd; .*use head_dim=16"),
        ({"vocab_size": "320"}, r"'vocab_size' expected int, got str \(value: '320'\)"),
        ({"hidden_size": 48.5}, r"'hidden_size' expected int, got float \(value: 48.5\)"),
        ({"use_cache": "yes"}, "'use_cache' expected bool, got str"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0 is not in"),
        ({"hidden_act": "sillu"}, "hidden_act='sillu' is not known to transformers; did you mean 'silu'?"),
        ({"rope_parameters": {"rope_type": "yarrn"}}, "rope_type='yarrn' .* did you mean 'yarn'?"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`.*factor"),
        ({"pad_token_id": 320}, "pad_token_id=320 is outside the vocabulary; use None or an id from 0 to 319"),
        ({"pad_token_id": -1}, "pad_token_id=-1 is outside the vocabulary"),
        ({"eos_token_id": [0, 999]}, r"eos_token_id=\[0, 999\] is outside the vocabulary"),
    ],
)  # fmt: skip
def test_a_config_mistake_names_field_value_and_mend(fields: dict[str, object], message: str) -> None:
    sizes = {"vocab_size": 320, "hidden_size": 48, "num_attention_heads": 4, "head_dim": 8}
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        ScratchConfig(**{**sizes, **fields})


def test_sizes_that_are_left_out_are_derived() -> None:
    config = ScratchConfig(hidden_size=96, num_attention_heads=6)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (16, 6, 256)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_numbers_as_yaml_and_old_configs_write_them() -> None:
    config = ScratchConfig(rms_norm_eps=1, attention_dropout=0, rope_theta=500000)
    assert (config.rms_norm_eps, config.attention_dropout) == (1, 0)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000}
    scaled = ScratchConfig(rope_theta=500, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {"rope_type": "linear", "rope_theta": 500, "factor": 2.0}


def test_config_json_comes_back(tiny_config: ScratchConfig, tmp_path: Path) -> None:
    tiny_config.save_pretrained(tmp_path)
    assert ScratchConfig.from_pretrained(tmp_path).to_dict() == tiny_config.to_dict()


def test_config_json_of_a_newer_transformers_loads(tiny_config: ScratchConfig, tmp_path: Path) -> None:
    tiny_config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content |= {"transformers_version": "9.0.0", "quux_plan": {"a": 1}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert ScratchConfig.from_pretrained(tmp_path).hidden_size == tiny_config.hidden_size
