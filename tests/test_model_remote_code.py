"""A saved model loads on a machine that has transformers and not this package, and can be saved and loaded from there.

What is published is a folder: weights, config, tokenizer and the two files of `hf_scratch/model`. The folder is moved
before it is loaded, in a new process where `import hf_scratch` fails.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from hf_scratch import ScratchConfig, ScratchForCausalLM, ScratchModel

CODE_FILES = {"configuration_scratch.py", "modeling_scratch.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_scratch.ScratchConfig",
    "AutoModel": "modeling_scratch.ScratchModel",
    "AutoModelForCausalLM": "modeling_scratch.ScratchForCausalLM",
}
IDS = [[5, 6, 7, 8, 9, 10], [300, 2, 44, 3, 0, 17]]

LOAD_AND_SAVE_AGAIN = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
try:
    import hf_scratch
    raise SystemExit("hf_scratch can be imported: this process proves nothing")
except ImportError:
    pass
source, copy, ids = sys.argv[1:]
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
base = AutoModel.from_pretrained(source, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
ids = torch.tensor(json.loads(ids))
torch.manual_seed(0)
fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True).model.layers[0]
model.save_pretrained(copy)
tokenizer.save_pretrained(copy)
print(json.dumps({
    "classes": [type(x).__module__.split(".")[0] + "." + type(x).__name__ for x in (config, base, model)],
    "logits": model(ids).logits.tolist(),
    "head_on_base": model.lm_head(base(ids).last_hidden_state).tolist(),
    "generated": model.generate(ids, max_new_tokens=6, do_sample=False).tolist(),
    "inv_freq": model.model.rotary_emb.inv_freq.tolist(),
    "fresh_std": [fresh.mlp.up_proj.weight.std().item(), fresh.mlp.down_proj.weight.std().item()],
    "fresh_norm": fresh.self_attn.q_norm.weight.tolist(),
}))
"""


def read_auto_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text())["auto_map"]


def assert_complete(folder: Path) -> None:
    """The folder can be published: both code files, and each Auto class by a plain file name."""
    assert {file.name for file in folder.glob("*.py")} == CODE_FILES
    assert read_auto_map(folder) == AUTO_MAP
    for name in CODE_FILES:
        source = Path(__file__).parent.parent / "hf_scratch" / "model" / name
        assert (folder / name).read_text() == source.read_text()


@pytest.mark.slow  # each new process imports torch and transformers
def test_a_published_folder_works_where_hf_scratch_is_not_installed(
    tiny_model: ScratchForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerBase,
    run_without_hf_scratch: Callable[..., str],
    tmp_path: Path,
) -> None:
    saved, published, again = tmp_path / "saved", tmp_path / "published", tmp_path / "again"
    tiny_model.save_pretrained(saved)
    tiny_tokenizer.save_pretrained(saved)
    shutil.move(saved, published)
    assert_complete(published)

    ids = torch.tensor(IDS)
    with torch.no_grad():
        logits = tiny_model(ids).logits
    generated = tiny_model.generate(ids, max_new_tokens=6, do_sample=False)
    for source, copy in [(published, again), (again, tmp_path / "third")]:
        result = json.loads(run_without_hf_scratch(LOAD_AND_SAVE_AGAIN, source, copy, json.dumps(IDS)))
        names = ["ScratchConfig", "ScratchModel", "ScratchForCausalLM"]
        assert result["classes"] == [f"transformers_modules.{name}" for name in names]
        assert torch.equal(torch.tensor(result["logits"]), logits)
        assert torch.equal(torch.tensor(result["head_on_base"]), logits)
        assert result["generated"] == generated.tolist()
        assert result["inv_freq"] == tiny_model.model.rotary_emb.inv_freq.tolist()
        assert result["fresh_std"] == pytest.approx([0.2, 0.2 / (2 * 2) ** 0.5], rel=0.1)
        assert set(result["fresh_norm"]) == {1.0}
        assert_complete(copy)


def test_each_class_saves_its_code_and_the_whole_auto_map(tiny_config: ScratchConfig, tmp_path: Path) -> None:
    ScratchModel(tiny_config).save_pretrained(tmp_path / "base")
    ScratchForCausalLM(tiny_config).save_pretrained(tmp_path / "head")
    assert_complete(tmp_path / "base")
    assert_complete(tmp_path / "head")
    # Loaded through the Auto classes, where the registered class wins over the folder's code, and saved once more.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "head", trust_remote_code=True)
    assert type(loaded) is ScratchForCausalLM
    loaded.save_pretrained(tmp_path / "again")
    assert_complete(tmp_path / "again")


def test_auto_classes_need_no_remote_code_where_hf_scratch_is_imported(
    tiny_model: ScratchForCausalLM, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    for file in CODE_FILES:
        (tmp_path / file).unlink()
    assert type(AutoConfig.from_pretrained(tmp_path)) is ScratchConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is ScratchModel
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(torch.tensor(IDS)).logits, tiny_model(torch.tensor(IDS)).logits)


def test_the_generation_config_is_saved_as_it_was_set(tiny_config: ScratchConfig, tmp_path: Path) -> None:
    model = ScratchForCausalLM(tiny_config)
    model.generation_config = GenerationConfig(eos_token_id=[3, 0], pad_token_id=1, do_sample=True, top_k=20)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["pad_token_id"], saved["top_k"]) == ([3, 0], 1, 20)
    assert "_from_model_config" not in saved
