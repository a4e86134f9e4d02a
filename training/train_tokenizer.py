"""Train a byte-level BPE tokenizer on one's own text and say how well it compresses held-out text.

    python -m training.train_tokenizer --output_dir runs/mine/tokenizer --files "books/*.txt" --vocab_size 8192

Without `--files` or `--dataset` the text is the embedded stories, or what a YAML of `--config` names as `sources`, the
same as for training.prepare_data but not cleaned. The output folder loads with `AutoTokenizer`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from hf_scratch.tokenizer import encode_texts, train_tokenizer
from training.corpus.readers.plain import read_documents
from training.corpus.recipe import DocumentSource, describe_files, expand_files, read_sources
from training.corpus.split import check_val_fraction
from training.stage.config import parse_config
from training.stage.record import command, open_stage

SAMPLE_BYTES = 10_000_000  # of held-out text is enough to state the compression to three digits


@dataclass(kw_only=True)
class TokenizerConfig(DocumentSource):
    """Settings of the stage `tokenizer`."""

    output_dir: str = field(metadata={"help": "Folder of the tokenizer."})
    vocab_size: int = field(default=32768, metadata={"help": "Number of tokens, 256 bytes and 4 special included."})
    max_documents: int = field(default=1_000_000, metadata={"help": "Documents to learn from; the first ones count."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(TokenizerConfig, argv, __doc__)
    check_val_fraction(config.val_fraction)
    listing = describe_files(read_sources(config.sources, config.files)) if config.sources else None
    inputs: dict[str, str | list[str] | None] = {"files": expand_files(config.files), "listing": listing}
    stage = open_stage("tokenizer", config, inputs, config.output_dir)
    if stage.done:
        return
    texts = itertools.islice(read_documents(config, "train"), config.max_documents)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    num_bytes, num_tokens = compression(tokenizer, read_documents(config, "val"))
    tokenizer.save_pretrained(stage.folder)
    print(f"{len(tokenizer)} tokens, {num_bytes / num_tokens:.3f} bytes a token on {num_bytes:,} held-out bytes")
    stage.finish({"vocab_size": len(tokenizer), "bytes_per_token": round(num_bytes / num_tokens, 4)})


def compression(tokenizer: PreTrainedTokenizerBase, texts: Iterator[str]) -> tuple[int, int]:
    """Return the bytes and the tokens of (at least the first `SAMPLE_BYTES` of) the texts."""
    num_bytes = num_tokens = 0
    for text in texts:
        num_bytes += len(text.encode())
        num_tokens += len(encode_texts(tokenizer, [text])[0])
        if num_bytes >= SAMPLE_BYTES:
            break
    if num_tokens == 0:
        raise ValueError("there is no held-out text to judge the tokenizer by; raise val_fraction or give more text.")
    return num_bytes, num_tokens


if __name__ == "__main__":
    main()
