"""The way from raw text to an aligned, released model: one stage a file, run from a clone of the repository."""

import logging

# transformers imports torchao where it is installed, which then tells of kernels for other processors.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
