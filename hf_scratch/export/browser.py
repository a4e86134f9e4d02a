"""Makes the page that runs a model in the visitor's browser: a static Space, which costs nothing and computes nothing.

The folder has the page's own files, the JavaScript of others, and each model as GGUF, compared with transformers. A
manifest names the commit that the weights were made from, and the size and hash of what the page loads.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_scratch.clean_process import control_tokens
from hf_scratch.export.npm import write_vendor
from hf_scratch.export.original import TEXTS, Original, greedy, load_original
from hf_scratch.hub.card import read_metadata
from hf_scratch.hub.files import hash_file
from hf_scratch.hub.page import write_manifest
from hf_scratch.tokenizer import encode_prompt

MAX_TOKENS = 2 * 0xFFFE  # characters in Unicode's private planes
MAX_CONTEXT = 4096  # tokens; the cache of a longer one does not fit into a phone's browser
TOKENS = 100  # greedy ones to compare after each prompt
SMALL = 16_000_000  # bytes of weights in 32 bits that nobody waits for, beside an engine of 10 MB
TIE = 0.01  # of logits: two tokens whose shares differ by 1 % are as likely, and 16 bits decide between them
RECORD = "training_record"
ORDER = ("tokenizer", "data", "pretrain", "sft", "dpo", "grpo")
EXAMPLES = (
    "Tell me a story about a fox named Mia who dropped a red kite into a pond.",
    "Write a story about a baker who lost a little key in the forest.",
    "Please tell me a story with a happy ending.",
)


def build_page(page: Path, models: Mapping[str, Path], folder: Path, say: Callable[[str], None]) -> None:
    """Write the page with its models; `pin_page` then says which commit they are of.

    Args:
        page: The page's own files, as the release has them.
        models: Folder of each model by the name that the page shows, the released one first.

    Raises:
        ValueError: A model does not fit, or llama.cpp does not say what transformers says.
        ImportError: The extra `browser` is not installed.
    """
    if not (page / "index.html").is_file():
        raise ValueError(
            f"{page} does not hold the page; remove the release's stage.json and make it again with "
            "`python -m training.release`."
        )
    released = next(iter(models.values()))
    shutil.copytree(page, folder, dirs_exist_ok=True)
    write_vendor(folder / "vendor")
    entries: list[dict[str, Any]] = []
    manifest: dict[str, Any] = {}
    (folder / "models").mkdir()
    for name, source in models.items():
        original = load_original(source, None)
        manifest = manifest or describe(original, source)
        found = write_model(original, folder / "models" / name)
        entries.append({"name": name} | about(folder, f"models/{found.name}"))
        say(f"{found.name}: {found.stat().st_size / 1e6:.1f} MB, the greedy tokens of transformers.")
    copy_tokenizer(released, folder / "tokenizer")
    (folder / "training.json").write_text(json.dumps(read_record(released)), encoding="utf-8")
    manifest |= {"models": entries, "engine": describe_engine(folder), "source": None}
    write_manifest(folder, manifest)


def about(folder: Path, name: str) -> dict[str, Any]:
    """Return what the page checks of a file before it uses it."""
    return {"file": name, "bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}


def describe_engine(folder: Path) -> dict[str, Any]:
    """Return the files of both builds of the engine."""
    compatible = {
        "wasm": about(folder, "vendor/wllama-compat/wllama.wasm"),
        "worker": about(folder, "vendor/wllama-compat/wllama.js"),
    }
    return {"default": {"wasm": about(folder, "vendor/wllama/wllama.wasm")}, "compat": compatible}


# ---- a model ----


def write_model(original: Original, stem: Path) -> Path:
    """Write a GGUF file that gives the greedy tokens of transformers: in 16 bits, if 32 are much to fetch, or in 32.

    Raises:
        ValueError: Neither does.
    """
    try:
        from hf_scratch.export import gguf
    except ImportError as error:
        raise ImportError(
            f"the page in the browser needs {error.name}; install it with `pip install 'hf_scratch[browser]'`, or "
            "take --space-kind gradio."
        ) from None
    context, never = original.model.config.max_position_embeddings, gguf.never(original)
    prompts = [original.reference.observed["prompt_ids"]]
    prompts += [encode_prompt(original.tokenizer, [{"role": "user", "content": text}]) for text in EXAMPLES]
    expected = [
        greedy(original.in_float32, prompt, min(TOKENS, context - len(prompt) - 1), never) for prompt in prompts
    ]
    in_32_bits = 4 * original.model.num_parameters()
    for kind in ("f32",) if in_32_bits <= SMALL else ("f16", "f32"):
        path = stem.with_name(f"{stem.name}-{kind}.gguf")
        gguf.write_file(original, path, *gguf.TYPES[kind], name_tokens)
        with gguf.llama(path, context) as server:
            found = [
                gguf.complete(server, original, prompt, len(answer.tokens))
                for prompt, answer in zip(prompts, expected, strict=True)
            ]
        parted = [pair for pair in zip(expected, found, strict=True) if not pair[0].agrees(pair[1], TIE)]
        if not parted:
            return path
        path.unlink()
    raise ValueError(
        f"llama.cpp does not say what transformers says: {gguf.describe(*parted[0])}; take --space-kind gradio."
    )


def name_tokens(writer: Any, original: Original) -> None:
    """Write a vocabulary in which each token is one private character.

    The engine in the browser takes prompts as text, and finds control tokens in it whoever wrote them. With these
    names a prompt is a list of tokens all the same, and no text of a person is read by it.
    """
    from hf_scratch.export.gguf import end_tokens

    size, ends = original.model.config.vocab_size, end_tokens(original)
    if size > MAX_TOKENS:
        raise ValueError(
            f"the vocabulary has {size:,} tokens; a page in the browser can name {MAX_TOKENS:,}. Take --space-kind "
            "gradio."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([name_token(number) for number in range(size)])
    writer.add_token_types([4] * size)  # user-defined: found in a prompt, and written as they stand
    writer.add_token_merges(["a b"])  # of no use, and asked for
    writer.add_eos_token_id(ends[0])
    writer.add_eot_token_id(ends[-1])
    writer.add_add_bos_token(False)


def name_token(number: int) -> str:
    """Return the private character of a token, as the page's `engine.js` has it."""
    return chr(0xF0000 + number if number < 0xFFFE else 0x100000 + number - 0xFFFE)


# ---- what the page says and needs to know ----


def describe(original: Original, folder: Path) -> dict[str, Any]:
    """Return what the page shows of the released model, how it samples, and how text becomes its tokens."""
    from hf_scratch.export.gguf import end_tokens, without_marks

    model, tokenizer, card = original.model, original.tokenizer, read_metadata(folder)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template; give a model that was trained to chat.")
    config, asked = model.config, model.generation_config
    context = min(config.max_position_embeddings, MAX_CONTEXT)
    prompts = [item["text"] if "text" in item else item["messages"][-1]["content"] for item in card.get("widget", [])]
    examples = list(dict.fromkeys([*prompts, *EXAMPLES]))[:3] if only_stories(folder) else prompts
    temperature = 0.7 if asked.temperature is None else min(asked.temperature, 2.0)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    checks = [[{"role": "user", "content": text}] for text in (*TEXTS, " ".join(control_tokens(tokenizer)))]
    return {
        "name": card.get("model_name") or title(folder),
        "about": f"A language model with {count(model.num_parameters())} parameters that reads {context:,} tokens.",
        "context": context,
        "examples": examples or list(EXAMPLES),
        "defaults": {
            "temperature": 0.0 if asked.do_sample is False else temperature,
            "top_k": min(50 if asked.top_k is None else asked.top_k, 200),
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "repetition_penalty": min(max(asked.repetition_penalty or 1.0, 1.0), 2.0),
            "max_new_tokens": min(asked.max_new_tokens or 256, context // 2),
        },
        "tokenizer": {
            "chat_template": without_marks(tokenizer.chat_template),
            "special": special,
            "control": control_tokens(tokenizer),
            "bos": tokenizer.bos_token_id,
            "end": end_tokens(original),
            "never": list(asked.suppress_tokens or ()),
            "checks": [{"messages": messages, "ids": encode_prompt(tokenizer, messages)} for messages in checks],
        },
    }


def title(folder: Path) -> str:
    """Return the title of a model's card."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return next((line[2:].strip() for line in lines if line.startswith("# ")), folder.resolve().name)


def only_stories(folder: Path) -> bool:
    """Whether the model's card asks for a story, as those of the embedded stories do."""
    return "story" in json.dumps(read_metadata(folder).get("widget", "story"))


def count(number: int) -> str:
    """Write a number of parameters with three digits, as 1.23 million."""
    for of, word in ((10**9, "billion"), (10**6, "million")):
        if number >= of:
            return f"{number / of:.3g} {word}"
    return f"{number:,}"


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's own files."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of the training record: `results`, and for each stage `metrics` and `stage`; None if none."""
    record: dict[str, Any] = {"stages": {}, "results": read_json(folder / RECORD / "eval" / "results.json")}
    for stage in (folder / RECORD / name / "stage.json" for name in (*ORDER, "eval")):
        if stage.is_file():
            metrics = stage.with_name("metrics.jsonl")
            lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
            rows = [json.loads(line) for line in lines if line.strip()]
            record["stages"][stage.parent.name] = {"stage": read_json(stage), "metrics": rows}
    return record if record["stages"] or record["results"] else None


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds, empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
