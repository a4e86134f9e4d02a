"""A folder loads by the Auto classes after `import hf_scratch` alone, whatever other programs left in its config."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_scratch import ScratchConfig, ScratchForCausalLM


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_decoder", False),
        ("unsloth_version", "2026.10"),
        ("use_return_dict", True),
        ("sep_token_id", None),
        ("hiden_size", 64),
        ("unsloth_fixed", True),
        ("pretraining_tp", 1),
    ],
)
@pytest.mark.parametrize("version", ["5.23.0", None])
def test_config_json_with_keys_of_other_programs_loads(
    tiny_config: ScratchConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    version: str | None,
    key: str,
    value: object,
) -> None:
    content = tiny_config.to_dict() | {"transformers_version": version, key: value}
    (tmp_path / "config.json").write_text(json.dumps(content))
    logging.getLogger("transformers").warning_once.cache_clear()  # type: ignore[attr-defined]
    with warnings_of("transformers"), caplog.at_level("WARNING"):
        config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is ScratchConfig and config.hidden_size == tiny_config.hidden_size
    config.save_pretrained(tmp_path / "again")  # and comes back once more, as a tuned model is saved
    again = AutoConfig.from_pretrained(tmp_path / "again").to_dict()
    assert {**again, "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    # What is near a field could be a mistake of who edited the file, and is named.
    assert (f"{key}={value!r} is not a field" in caplog.text) is (key not in ("unsloth_fixed", "pretraining_tp"))
    if key == "hiden_size":
        assert "did you mean hidden_size=64?" in caplog.text


@contextmanager
def warnings_of(library: str) -> Iterator[None]:
    """Let pytest see what a library says, which it keeps from the root logger."""
    logging.getLogger(library).propagate = True
    yield
    logging.getLogger(library).propagate = False


IMPORTS = {
    "hf_scratch first": "import hf_scratch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer",
    "transformers first": "from transformers import AutoModelForCausalLM, AutoTokenizer\nimport hf_scratch",
    "transformers' generation first": "import hf_scratch\nfrom transformers.generation import GenerationMixin",
}


@pytest.mark.slow  # a new process imports torch and transformers
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
def test_import_hf_scratch_is_all_that_the_auto_classes_need(
    tiny_model: ScratchForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, imports: str
) -> None:
    tiny_model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    code = f"""{imports}
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
classes = (AutoTokenizer, AutoModel, AutoModelForCausalLM)
print(*(type(auto.from_pretrained({str(tmp_path)!r})).__module__ for auto in classes))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    ours = "hf_scratch.model.modeling_scratch"
    assert result.stdout.split()[1:] == [ours, ours] and "custom code" not in result.stdout + result.stderr


def test_what_is_written_in_code_is_refused_whatever_else_it_holds(tiny_config: ScratchConfig) -> None:
    for known in ({}, tiny_config.to_dict()):
        with pytest.raises(ValueError, match="hiden_size=64 is not a field .* did you mean hidden_size=64"):
            ScratchConfig(**known, hiden_size=64)
