"""What all tests share: offline, one thread, nothing left behind, and a model and a tokenizer too small to wait for.

The model's weights are larger than the usual ones, and its norms are not one, so that every part of it matters to the
logits; the head width differs from `hidden_size / num_attention_heads`, and heads are grouped.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the Hub library is imported, which reads it once

import pytest
import torch
from chromium import chromium, screens  # noqa: F401
from hub_server import WRITER, HubServer
from hypothesis import settings
from running_page import page_copy, page_folder, page_release, page_url, vendor, visit_page  # noqa: F401
from running_space import running, space_release  # noqa: F401, fixtures of one process for several files
from tiny_release import make_published_run
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hf_scratch import ScratchConfig, ScratchForCausalLM, train_tokenizer
from training.engine.save import save_model

torch.set_num_threads(1)
settings.register_profile("hf_scratch", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("hf_scratch")

WITHOUT_HF_SCRATCH = """
import sys
sys.modules["hf_scratch"] = None  # makes `import hf_scratch` fail, installed or not
import torch
torch.set_num_threads(1)
"""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Put the environment and torch's default dtype back after each test."""
    environment, dtype = dict(os.environ), torch.get_default_dtype()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def tiny_config() -> ScratchConfig:
    """Two layers, 4 query heads on 2 key/value heads of width 8, and a vocabulary for the tiny tokenizer."""
    return ScratchConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
    )


@pytest.fixture(scope="session")
def make_model(tiny_config: ScratchConfig) -> Callable[..., ScratchForCausalLM]:
    """Build a model of the tiny configuration, with other fields if given, always with the same weights."""

    def make(attention: str = "sdpa", **fields: object) -> ScratchForCausalLM:
        config = ScratchConfig(**{**tiny_config.to_dict(), **fields})
        torch.manual_seed(0)
        model = ScratchForCausalLM(config).eval()
        model.set_attn_implementation(attention)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., ScratchForCausalLM]) -> ScratchForCausalLM:
    """A model to read from; a test that changes one makes its own."""
    return make_model()


@pytest.fixture(scope="session")
def make_stock_twin() -> Callable[[ScratchForCausalLM], Qwen3ForCausalLM]:
    """Build transformers' own model with the sizes and weights of one of ours."""

    def make(model: ScratchForCausalLM) -> Qwen3ForCausalLM:
        names = set(Qwen3Config().to_dict()) - {"architectures", "model_type"}
        sizes = {name: getattr(model.config, name) for name in names if hasattr(model.config, name)}
        twin = Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()
        twin.set_attn_implementation(model.config._attn_implementation)
        twin.load_state_dict(model.state_dict(), strict=True)
        return twin

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """320 tokens, learnt on a few sentences; two line breaks are one token, so that the parts of a chat can join."""
    text = (
        "Once upon a time a little fox lost a red kite <|im_end|> The owl said: it's there, café, 東京, 12 o'clock\n\n"
    )
    tokenizer = train_tokenizer([text * 2, text.lower()], 320, show_progress=False)
    assert "ĊĊ" in tokenizer.get_vocab()
    return tokenizer


@pytest.fixture(scope="session")
def run_without_hf_scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run Python code as a user's machine would: a new process, elsewhere, that cannot import this package."""

    def run(code: str, *arguments: str | Path) -> str:
        folder = tmp_path_factory.mktemp("elsewhere")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS_"))}
        environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", "-c", WITHOUT_HF_SCRATCH + code, *map(str, arguments)]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub on loopback, empty."""
    with HubServer() as server:
        yield server


@pytest.fixture
def run_online(hub: HubServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python as a user of that Hub: the unmodified client, an empty cache, a token that may write."""

    def run(*arguments: str | Path, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        # The server speaks LFS, not Xet; the client reads all of these when it is imported.
        kept |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
        kept |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"} | environment
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=kept, input=said, capture_output=True, text=True)

    return run


@pytest.fixture
def base(
    make_model: Callable[..., ScratchForCausalLM], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> str:
    """Folder of an untrained model, to align."""
    save_model(make_model(initializer_range=0.05, hidden_size=64), tiny_tokenizer, tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture(scope="module")
def released(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A run of noise with its release, as `publish` takes it."""
    return make_published_run(tmp_path_factory.mktemp("runs") / "tiny", make_model, tiny_tokenizer)
