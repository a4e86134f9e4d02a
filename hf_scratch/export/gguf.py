"""Writes GGUF files for llama.cpp, and lets a real llama.cpp read them back.

Scratch is Qwen3's dense model in names and maths, so the architecture is `qwen3`. In float32 llama.cpp must give the
same greedy tokens as transformers; what float16 and 8 bits change is measured.
"""

import contextlib
import copy
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
import xllamacpp
from gguf import GGMLQuantizationType, LlamaFileType

from hf_scratch.export.original import TEXTS, Greedy, Original, compare_bits, greedy, measure_bits
from hf_scratch.tokenizer import QWEN2_PATTERN, encode_prompt, encode_texts

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# llama.cpp has the patterns that split text built in, each with a name; another one cannot be exported.
PATTERNS = {QWEN2_PATTERN: "qwen2", QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
TOKENS = 200  # greedy ones to compare
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever proxy is set
# ChatML in Ollama's template language, which is Go's.
CHATML = """\
TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
"""


def write_gguf(original: Original, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write f32, f16 and q8_0 with a Modelfile for Ollama, and compare each with transformers.

    Raises:
        ValueError: llama.cpp does not know the tokenizer's pattern or the RoPE type, reads text into other tokens, or
            goes another way in float32.
    """
    prompt, context = original.reference.observed["prompt_ids"], original.model.config.max_position_embeddings
    expected = greedy(original.in_float32, prompt, min(TOKENS, context - len(prompt) - 1), never(original))
    stored, before = copy.deepcopy(original.in_float32), measure_bits(original, original.in_float32)
    measured = {}
    for name, (kind, file_type) in TYPES.items():
        path = folder / f"model-{name}.gguf"
        write_file(original, path, kind, file_type, add_tokenizer)
        with llama(path, context) as server:
            check_tokens(server, original)
            check_chat(server, original)
            found = complete(server, original, prompt, len(expected.tokens))
        measured[path.name] = describe(expected, found)
        if name == "f32" and not expected.agrees(found):
            raise ValueError(f"llama.cpp does not say what transformers says, in float32: {measured[path.name]}.")
        read_weights(path, stored)
        measured[path.name] += f"; {compare_bits(original, before, stored)}"
    write_modelfile(original, folder)
    return measured, ("gguf", "xllamacpp")


# ---- the file ----


def write_file(
    original: Original, path: Path, kind: GGMLQuantizationType, file_type: LlamaFileType,
    add_tokens: Callable[[gguf.GGUFWriter, Original], None],
) -> None:  # fmt: skip
    """Write one GGUF file, whose vocabulary `add_tokens` writes."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_sizes(writer, original.model.config)
    add_tokens(writer, original)
    names = tensor_names(original.model)
    for name, tensor in original.model.state_dict().items():
        if name == "lm_head.weight" and original.model.config.tie_word_embeddings:
            continue
        data = tensor.float().contiguous().numpy()
        # Norms stay in float32, llama.cpp demands it; so do rows that 8-bit blocks of 32 do not divide.
        small = data.ndim == 1 or (kind == GGMLQuantizationType.Q8_0 and data.shape[-1] % 32)
        used = GGMLQuantizationType.F32 if small else kind
        writer.add_tensor(names[name], gguf.quantize(data, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def read_weights(path: Path, model: Any) -> None:
    """Give a model in float32 the weights of a GGUF file, as they were rounded there."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = tensor_names(model)
    for name, parameter in model.named_parameters():  # a tied LM head has no name of its own
        tensor = stored[names[name]]
        parameter.copy_(torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()))


def tensor_names(model: Any) -> dict[str, str]:
    """Return llama.cpp's name of each tensor of the model."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    return {name: known.get_name(name, (".weight",)) or name for name in model.state_dict()}


def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes of the model."""
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(f"rope_type={rope['rope_type']!r} is not exported to GGUF; only 'default' is.")
    writer.add_name(Path(config.name_or_path).name or "model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])


def add_tokenizer(writer: gguf.GGUFWriter, original: Original) -> None:
    """Write vocabulary, merges, special tokens and chat template."""
    tokenizer, size = original.tokenizer, original.model.config.vocab_size
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both kinds of added tokens are found whole in a text; those that are not special, when it is a user's, too.
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    added = {token["id"]: kinds[token["special"]] for token in backend["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number] = token
        types[number] = added.get(number, gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pattern_name(backend))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = backend["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ends = end_tokens(original)
    writer.add_eos_token_id(ends[0])
    writer.add_eot_token_id(ends[0])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(begins_with_bos(original))
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(without_marks(tokenizer.chat_template))


def begins_with_bos(original: Original) -> bool:
    """Whether a text begins with the bos token: documents did in pretraining, the conversations after it do not."""
    return original.tokenizer.bos_token_id is not None and not original.reference.chats


def pattern_name(backend: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pattern that splits text.

    Raises:
        ValueError: It has none; a wrong name would load and then read some texts differently.
    """
    normalizer, pre = backend["normalizer"], backend["pre_tokenizer"] or {"type": None}
    first = pre["pretokenizers"][0] if pre["type"] == "Sequence" else pre
    if normalizer is None or normalizer["type"] == "NFC":
        if pre["type"] == "ByteLevel" and pre["use_regex"]:
            return "gpt-2"
        pattern = first.get("pattern", {}).get("Regex")
        if pattern in PATTERNS:
            return PATTERNS[pattern]
    raise ValueError(
        "llama.cpp does not know how this tokenizer splits text, so it would read it into other tokens; "
        "use the tokenizer of training.train_tokenizer, or one with GPT-2's, Qwen2's or Llama 3's pattern."
    )


def without_marks(template: str) -> str:
    """Return the chat template without the marks of the assistant's words, which only training needs."""
    for mark in ("generation", "endgeneration"):
        for begin, end in (("{%-", "%}"), ("{%-", "-%}"), ("{%", "%}"), ("{%", "-%}")):
            template = template.replace(f"{begin} {mark} {end}", "")
    return template


def end_tokens(original: Original) -> list[int]:
    """Return the tokens that end an answer, the tokenizer's own first."""
    ends = original.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    own = original.tokenizer.eos_token_id
    return [own, *(token for token in ends if token not in (own, None))]


def write_modelfile(original: Original, folder: Path) -> None:
    """Write what Ollama needs to know besides the weights; its own template only if the model's is ChatML."""
    lines = ["FROM ./model-q8_0.gguf\n"]
    messages = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    chatml = (
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    )
    tokenizer = original.tokenizer
    if tokenizer.chat_template:
        shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        lines += [CHATML] if shown == chatml else []
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"\n' for token in end_tokens(original)]
    lines.append(f"PARAMETER num_ctx {original.model.config.max_position_embeddings}\n")
    if not original.model.generation_config.do_sample:
        lines.append("PARAMETER temperature 0\n")
    (folder / "Modelfile").write_text("".join(lines), encoding="utf-8")


# ---- llama.cpp ----


@contextlib.contextmanager
def llama(path: Path, context: int) -> Iterator[xllamacpp.Server]:
    """Load a GGUF file into llama.cpp on the CPU, with as many threads as torch may use."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    # Only the weights may be rounded: a cache in 16 bits would round, too.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.verbosity = -1
    with silent():
        server = xllamacpp.Server(params)
        yield server
        del server


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what C++ code writes on stderr off the screen."""
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def ask(server: xllamacpp.Server, path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Send a request of llama.cpp's own API, which has token ids, to the address on loopback where it listens."""
    data, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
    with DIRECT.open(urllib.request.Request(server.listening_address + path, data, headers)) as answer:
        return json.loads(answer.read())


def complete(server: xllamacpp.Server, original: Original, prompt: list[int], count: int) -> list[int]:
    """Return llama.cpp's greedy tokens after a prompt, past where the answer would end."""
    content = {
        "prompt": prompt,
        "n_predict": count,
        "temperature": 0,
        "samplers": ["temperature"],
        "cache_prompt": False,
        "return_tokens": True,
        "logit_bias": [[token, False] for token in never(original)],
    }
    return list(ask(server, "/completion", content)["tokens"])


def never(original: Original) -> list[int]:
    """Return the tokens that the comparison leaves out: both would stop there."""
    return sorted({*end_tokens(original), *original.tokenizer.all_special_ids})


def describe(expected: Greedy, found: list[int]) -> str:
    """Say how far two sequences of tokens agree."""
    same, count = expected.parting(found), len(expected.tokens)
    if same == count:
        return f"the same {same} greedy tokens in llama.cpp"
    return f"the first {same} of {count} greedy tokens the same in llama.cpp"


def check_tokens(server: xllamacpp.Server, original: Original) -> None:
    """Raise ValueError if llama.cpp reads a text or an added token into other tokens, or begins a text otherwise."""
    tokenizer = original.tokenizer
    begin = [tokenizer.bos_token_id] if begins_with_bos(original) else []
    cases = [
        (text, {"parse_special": False, "add_special": True}, begin + ids)
        for text, ids in zip(TEXTS, encode_texts(tokenizer, TEXTS), strict=True)
    ]
    for token in tokenizer.added_tokens_decoder.values():
        text = f"the {token.content} and{token.content}\n"
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        cases.append((text, {"parse_special": True, "add_special": False}, expected))
    for text, how, expected in cases:
        found = ask(server, "/tokenize", {"content": text, **how})["tokens"]
        if found != expected:
            raise ValueError(f"llama.cpp reads {text!r} into other tokens: {found}, not {expected}.")


def check_chat(server: xllamacpp.Server, original: Original) -> None:
    """Raise ValueError if llama.cpp makes another prompt of a conversation with the model's chat template."""
    if original.tokenizer.chat_template:
        expected = encode_prompt(original.tokenizer, original.reference.messages)
        text = ask(server, "/apply-template", {"messages": original.reference.messages})["prompt"]
        found = ask(server, "/tokenize", {"content": text, "parse_special": True})["tokens"]
        if found != expected:
            raise ValueError(f"llama.cpp's prompt of a conversation is another one: {text!r}.")
