"""A decoder language model written from scratch for the Hugging Face stack.

`import hf_scratch` loads nothing else; the first public name that is used loads what it needs, and with the model's
classes it teaches `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` the model type `scratch`, so that
a folder or Hub id loads without remote code.
"""

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


def _register_with_auto_classes() -> dict[str, type]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .model.configuration_scratch import ScratchConfig
    from .model.modeling_scratch import ScratchForCausalLM, ScratchModel

    AutoConfig.register("scratch", ScratchConfig, exist_ok=True)
    AutoModel.register(ScratchConfig, ScratchModel, exist_ok=True)
    AutoModelForCausalLM.register(ScratchConfig, ScratchForCausalLM, exist_ok=True)
    return {
        "ScratchConfig": ScratchConfig,
        "ScratchModel": ScratchModel,
        "ScratchForCausalLM": ScratchForCausalLM,
    }
