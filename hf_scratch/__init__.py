"""A decoder language model written from scratch for the Hugging Face stack.

`import hf_scratch` loads nothing else; the first public name that is used loads what it needs. It also teaches
transformers' Auto classes the model type `scratch`, whether they were imported before or will be, so that a folder or
Hub id loads without remote code.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model.configuration_scratch import ScratchConfig
    from .model.modeling_scratch import ScratchForCausalLM, ScratchModel
    from .tokenizer import encode_chat, encode_prompt, encode_texts, train_tokenizer

__version__ = "0.1.0"
__all__ = [
    "ScratchConfig",
    "ScratchForCausalLM",
    "ScratchModel",
    "encode_chat",
    "encode_prompt",
    "encode_texts",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    # Importing transformers' model classes takes seconds and brings in accelerate where it is installed (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("Scratch"):
        globals().update(_register_with_auto_classes())
    else:
        from . import tokenizer

        globals()[name] = getattr(tokenizer, name)
    return globals()[name]


AUTO_CLASSES = "transformers.models.auto.configuration_auto"


def _announce() -> None:
    """Say to AutoConfig where the model type is found; it imports the classes when it meets one, not before."""
    mapping = sys.modules[AUTO_CLASSES].CONFIG_MAPPING
    mapping._mapping["scratch"] = "ScratchConfig"
    mapping._modules["scratch"] = sys.modules[__name__]


class _WhenAutoClassesCome(MetaPathFinder):
    """Announces the model type once transformers' Auto classes are imported, which takes seconds."""

    def find_spec(self, name: str, *args: Any) -> Any:
        """Find the Auto classes as they would be found without this, with a word to say to them."""
        if name != AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _announce()

        spec.loader.exec_module = exec_module
        return spec


if AUTO_CLASSES in sys.modules:
    _announce()
else:
    sys.meta_path.insert(0, _WhenAutoClassesCome())


def _register_with_auto_classes() -> dict[str, type]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .model.configuration_scratch import ScratchConfig
    from .model.modeling_scratch import ScratchForCausalLM, ScratchModel

    AutoConfig.register("scratch", ScratchConfig, exist_ok=True)
    AutoModel.register(ScratchConfig, ScratchModel, exist_ok=True)
    AutoModelForCausalLM.register(ScratchConfig, ScratchForCausalLM, exist_ok=True)
    return {"ScratchConfig": ScratchConfig, "ScratchModel": ScratchModel, "ScratchForCausalLM": ScratchForCausalLM}
