"""How many floating-point operations a token costs, and which share of a GPU's peak a run uses.

The plan and the training loop use the same formula, so a plan can be compared with the run.
"""

import re

import torch

from hf_scratch import ScratchConfig, ScratchForCausalLM

# Dense bfloat16 peaks in FLOP/s from NVIDIA's data sheets; the first name that a device's name has as a word counts.
PEAKS = {
    "GH200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
# Behind such a name: another chip of that name, or, for MIG, a slice of one.
OTHER_CHIPS = re.compile(r"\b(Ti|D|SUPER|Laptop|Mobile|Max-Q|MIG)\b")


def count_parameters(config: ScratchConfig) -> tuple[int, int]:
    """Return all parameters, and those without the embedding (and an LM head of its own), without making weights."""
    with torch.device("meta"):
        model = ScratchForCausalLM(config)
    return model.num_parameters(), model.num_parameters(exclude_embeddings=True)


def flops_per_token(config: ScratchConfig, context: int) -> int:
    """Return the operations of forward and backward pass for one token: 6N + 12 L H D T.

    N counts the weights that multiply: all but the embedding, whose lookup is free, unless it is the LM head as well.
    Of a weight's 6, 2 are forward and 4 backward; the second term is q k^T and its product with v, as if no
    position were masked (arXiv:2204.02311, appendix B). Recomputation does not count.
    """
    total, _ = count_parameters(config)
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context  # type: ignore[operator]
    return 6 * (total - lookup) + attention


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU in FLOP/s, or None if it is not known."""
    if OTHER_CHIPS.search(device_name):
        return None
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def utilisation(tokens_per_s: float, flops_a_token: int, num_gpus: int, peak: float) -> float:
    """Return model FLOPs utilisation, the share (0 to 1) of the GPUs' peak that the model's own operations take."""
    return tokens_per_s * flops_a_token / (num_gpus * peak)


def utilisation_of(
    device: torch.device, num_devices: int, tokens_per_s: float, config: ScratchConfig, context: int
) -> float | None:
    """Return model FLOPs utilisation on such devices, or None where the peak is not known."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else utilisation(tokens_per_s, flops_per_token(config, context), num_devices, peak)
