"""Loads a model folder as a stranger would and writes down what it finds; `hf_scratch.hub.verify` runs this file.

It is a script for `python -I`, in a process where the package that trained the model cannot be imported, so it imports
nothing of ours. `observe` runs in both processes: what then differs can only come from saving and loading.

    python -I clean_process.py MODEL_FOLDER WORK_FOLDER

It reads `request.json` in the work folder and writes `found.json` and `logits.safetensors` there.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How control tokens are spelled that are not special: a name between signs.
MARKUP = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
MAX_NEW_TOKENS = 256  # of the answer that is compared
Outcome = dict[str, Any]  # of a check: name, passed, detail


def main(folder: str, work: Path) -> None:
    """Run the checks and write them down with what the model said; a check that fails ends the run."""
    request = json.loads((work / "request.json").read_text(encoding="utf-8"))
    sys.modules.update(dict.fromkeys(request["blocked"]))  # None makes `import name` fail, installed or not
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(request["threads"])  # sums are rounded by how they are split over threads
    found: dict[str, Any] = {"checks": [], "observed": None}
    try:
        observed = load_and_observe(folder, request, found["checks"])
        save_file({"logits": observed.pop("logits")}, work / "logits.safetensors")
        found["observed"] = observed
    except Exception as error:
        reason = " ".join(str(error).split())
        found["checks"][-1] |= {"passed": False, "detail": f"{type(error).__name__}: {reason[:500]}"}
    (work / "found.json").write_text(json.dumps(found), encoding="utf-8")


@contextmanager
def check(checks: list[Outcome], name: str) -> Iterator[Outcome]:
    """Begin a check, which fails if something is raised in it; the details can be filled in."""
    checks.append({"name": name, "passed": True, "detail": ""})
    yield checks[-1]


def load_and_observe(folder: str, request: dict[str, Any], checks: list[Outcome]) -> dict[str, Any]:
    """Load the folder by every Auto class, check what can be checked without a reference, and observe it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    messages, needs_template = request["messages"], request["needs_template"]
    with check(checks, "AutoConfig loads"):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with check(checks, "AutoTokenizer loads"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with check(checks, "AutoModelForCausalLM loads, all weights present"):
        model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        if wrong := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
            raise ValueError(f"weights do not fit the code: {wrong}")
    with check(checks, "every token has a row in the model"):
        if extra := tokens_without_row(tokenizer, model):
            raise ValueError(f"{len(extra):,} have none, {extra[0]!r} for one")
    with check(checks, "chat template renders") as template:
        if not needs_template and not tokenizer.chat_template:
            template["detail"] = "it has none; the messages are read as plain text"
        encode(tokenizer, messages, needs_template)
    with check(checks, "answers"):
        observed = observe(model, tokenizer, messages)
    if request["base_loads"]:
        with check(checks, "AutoModel loads and agrees with the head"), torch.no_grad():
            base = AutoModel.from_pretrained(folder, trust_remote_code=True)
            hidden = base(torch.tensor([observed["prompt_ids"]]), use_cache=False).last_hidden_state
            difference = (model.get_output_embeddings()(hidden)[0].float() - observed["logits"]).abs().max()
            if not difference <= 1e-5:
                raise ValueError(f"logits from AutoModel's hidden states differ by {difference:.1e}")
    with check(checks, "control tokens in a message stay text"):
        if became := spelled_control_tokens(tokenizer):
            raise ValueError(f"a message that spells them puts {', '.join(became)} into the prompt")
    return observed


def encode(tokenizer: Any, messages: list[dict[str, str]], needs_template: bool = False) -> Any:
    """Encode a conversation up to where the answer begins, as tensors (1, T); plain text without a chat template."""
    if not tokenizer.chat_template and not needs_template:
        text = "\n".join(message["content"] for message in messages)
        return tokenizer(text, split_special_tokens=True, return_token_type_ids=False, return_tensors="pt")
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, sanitize_control_tokens=True, return_tensors="pt"
    )


def tokens_without_row(tokenizer: Any, model: Any) -> list[str]:
    """Return the tokens beyond the model's embedding, which fails as soon as one of them is written.

    Special ones that nothing writes are left out: Gemma 3 has one for pictures in its models without eyes, too.
    """
    rows, template = model.get_input_embeddings().weight.shape[0], str(tokenizer.chat_template)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    written = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    beyond = (token for token, number in tokenizer.get_vocab().items() if number >= rows)
    return sorted(token for token in beyond if token not in special or token in written or token in template)


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the tokens that nobody's text may become: special ones, and `<think>` or `[TOOL_CALLS]`, which are not.

    What else was added to a vocabulary is text: runs of spaces, say, or the words of a trade.
    """
    added = tokenizer.added_tokens_decoder.values()
    control = [token.content for token in added if token.special or MARKUP.fullmatch(token.content)]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *control]))


def spelled_control_tokens(tokenizer: Any) -> list[str]:
    """Return the control tokens that are in a prompt because a message spells them."""
    # Without a template nothing is a message, and transformers keeps only special tokens text.
    control = control_tokens(tokenizer) if tokenizer.chat_template else tokenizer.all_special_tokens
    spelled, plain = (
        encode(tokenizer, [{"role": "user", "content": content}])["input_ids"][0].tolist()
        for content in (" ".join(control), "Hello")
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in control}
    return [token for token, number in ids.items() if spelled.count(number) > plain.count(number)]


def observe(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return what a model on the CPU makes of a conversation.

    Returns:
        weights: SHA-256 of all weights.
        prompt_ids: The encoded conversation, (T,).
        logits: Of the next token at each position of it, (T, vocab_size).
        answer_ids: The greedy answer. answer: Its text. ended: Whether an end token ended it.
    """
    import torch

    prompt = encode(tokenizer, messages)
    length = prompt["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**prompt, use_cache=False).logits[0].float()
        answer = model.generate(**prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)[0, length:].tolist()
    ends = model.generation_config.eos_token_id
    return {
        "weights": digest(model),
        "prompt_ids": prompt["input_ids"][0].tolist(),
        "logits": logits,
        "answer_ids": answer,
        "answer": tokenizer.decode(answer, skip_special_tokens=True),
        "ended": answer[-1] in (ends if isinstance(ends, list) else [ends]),
    }


def digest(model: Any) -> str:
    """Return the SHA-256 of names and bytes of all weights, so that not one bit of them can change unseen."""
    import torch

    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor if type(tensor) in (torch.Tensor, torch.nn.Parameter) else tensor.dequantize()
        hasher.update(plain.contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
