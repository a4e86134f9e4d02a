"""Turn text into token shards that pretraining memory-maps: a stream of ids and where each document starts.

    python -m training.prepare_data --tokenizer runs/mine/tokenizer --files "books/*.txt" --output_dir runs/mine/data

`train.bin` and `val.bin` hold `<|endoftext|>` and the tokens of each document in turn, and a last `<|endoftext|>`,
as uint16 (uint32 above 65,536 tokens); `*.starts.npy` the position of each document; `meta.json` the counts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch.tokenizer import encode_texts
from training.data.documents import DocumentSource, Split, expand_files, read_documents
from training.stage import command, open_stage, parse_config, write_json

SPLITS: tuple[Split, ...] = ("train", "val")
BATCH = 1000  # documents tokenized at once: enough to keep all cores busy


@dataclass(kw_only=True)
class DataConfig(DocumentSource):
    """Settings of the stage `data`."""

    output_dir: str = field(metadata={"help": "Folder of the shards."})
    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    config = parse_config(DataConfig, argv, __doc__)
    inputs = {"tokenizer": config.tokenizer, "files": expand_files(config.files)}
    stage = open_stage("data", config, inputs, config.output_dir)
    if stage.done:
        return
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    meta: dict[str, Any] = {"dtype": dtype, "vocab_size": len(tokenizer)}
    for split in SPLITS:
        meta[split] = write_split(stage.folder, split, tokenizer, read_documents(config, split), dtype)
        print("{0}: {documents:,} documents, {tokens:,} tokens, {bytes:,} bytes".format(split, **meta[split]))
    write_json(stage.folder / "meta.json", meta)
    stage.finish(meta)


def write_split(
    folder: Path, split: Split, tokenizer: PreTrainedTokenizerBase, documents: Iterator[str], dtype: str
) -> dict[str, int]:
    """Write one split's stream and starts, and return its counts."""
    starts: list[int] = []
    position = num_bytes = 0
    with (folder / f"{split}.bin").open("wb") as file:
        while batch := list(itertools.islice(documents, BATCH)):
            num_bytes += sum(len(text.encode()) for text in batch)
            for ids in encode_texts(tokenizer, batch):
                starts.append(position)
                file.write(np.array([tokenizer.bos_token_id, *ids], dtype=dtype).tobytes())
                position += 1 + len(ids)
        file.write(np.array([tokenizer.bos_token_id], dtype=dtype).tobytes())
    np.save(folder / f"{split}.starts.npy", np.array(starts, dtype=np.int64))
    if not starts:
        raise ValueError(f"there is no {split} text; change val_fraction or give more documents.")
    return {"documents": len(starts), "tokens": position + 1, "bytes": num_bytes}


if __name__ == "__main__":
    main()
