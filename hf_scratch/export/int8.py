"""Weights of 8 bits for PyTorch, by torchao."""

import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

from hf_scratch.export.original import Original, differences, missing_extra
from hf_scratch.export.transformers import MAX_SHARD, save_stock
from hf_scratch.hub.check import require
from hf_scratch.hub.verify import load_in_clean_process


def write_int8(original: Original, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the stock checkpoint with its linear layers in 8 bits, and measure what that costs."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise missing_extra(error) from None
    from transformers import TorchAoConfig

    with tempfile.TemporaryDirectory() as stock:
        save_stock(original, Path(stock))
        quantized = AutoModelForCausalLM.from_pretrained(
            stock, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), dtype="auto"
        )
    quantized.save_pretrained(folder, max_shard_size=MAX_SHARD)
    original.tokenizer.save_pretrained(folder)
    checks, observed = load_in_clean_process(folder, original.reference, base_loads=False)
    require(checks, "the 8-bit checkpoint")
    assert observed is not None, "all checks passed"
    return {"": differences(original, quantized, observed)}, ("torchao",)
