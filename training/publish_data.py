"""Publish token shards as a data set of the Hub, with their card, tokenizer and the origin of each document.

    python -m training.publish_data --data runs/mine/data --tokenizer runs/mine/tokenizer --output_dir runs/mine/shards
    python -m training.publish_data --data runs/mine/data --tokenizer runs/mine/tokenizer --repo_id user/shards

The first only writes the folder that the second uploads. Pretraining streams either, by `--data file:///...` or
`--data hf://datasets/user/shards`. Texts of dropped documents stay here: they may hold what had to be removed.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_scratch.files import link_or_copy
from training.stage import atomic_folder, command, parse_config, read_json, write_json


@dataclass(kw_only=True)
class PublishDataConfig:
    """Settings of publishing data."""

    data: str = field(metadata={"help": "Folder of token shards, made by training.prepare_data."})
    tokenizer: str = field(metadata={"help": "Folder of the tokenizer that made them."})
    repo_id: str | None = field(default=None, metadata={"help": "Data set on the Hub, user/name; made if it is new."})
    private: bool = field(default=True, metadata={"help": "Only you see a data set that is made."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Write the folder here; upload it if repo_id is set."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Build the folder, and upload it."""
    config = parse_config(PublishDataConfig, argv, __doc__)
    if not config.repo_id and not config.output_dir:
        raise ValueError("there is nothing to do: give --repo_id to upload, or --output_dir to write the folder.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(config.output_dir or f"{temporary}/shards")
        build_folder(Path(config.data), Path(config.tokenizer), folder)
        print(f"{folder} holds {sum(1 for path in folder.rglob('*') if path.is_file())} files")
        if config.repo_id:
            print(upload(folder, config.repo_id, config.private))


def publish_data(data: str, tokenizer: str, repo_id: str, private: bool = True) -> str:
    """Publish the shards in a folder; return the address of the data set."""
    with tempfile.TemporaryDirectory() as temporary:
        build_folder(Path(data), Path(tokenizer), Path(temporary) / "shards")
        return upload(Path(temporary) / "shards", repo_id, private)


def build_folder(data: Path, tokenizer: Path, folder: Path) -> None:
    """Write what is published of a folder of shards.

    Raises:
        ValueError: No shards, shards of another size than their records say, or another tokenizer.
    """
    meta = read_json(data / "meta.json")
    if not meta:
        raise ValueError(f"{data} holds no finished token shards; run `python -m training.prepare_data` first.")
    check_tokenizer(tokenizer, meta)
    names = {"val": "val"} | {
        name: f"train-{number:05d}" for number, name in enumerate(meta["train"].get("shards", ["train"]))
    }
    facts = {name: facts_of(data, name, meta) for name in names}
    with atomic_folder(folder) as beside:
        for name, published in names.items():
            copy_shard(data, name, beside, published)
            write_json(beside / f"{published}.json", facts[name])
        shutil.copytree(tokenizer, beside / "tokenizer", ignore=shutil.ignore_patterns("stage.json", ".*"))
        report = read_json(data / "data_report.json")
        if report:
            write_json(beside / "data_report.json", without_texts(report))
        card = data / "dataset_card.md"
        text = card.read_text(encoding="utf-8") if card.exists() else plain_card(meta)
        (beside / "README.md").write_text(text, encoding="utf-8")
        published_meta = {
            **meta,
            "train": {**meta["train"], "shards": [name for name in names.values() if name != "val"]},
        }
        write_json(beside / "meta.json", published_meta)


def check_tokenizer(tokenizer: Path, meta: dict[str, Any]) -> None:
    """Raise ValueError if a tokenizer is not there or has another size than the one that made the shards."""
    from transformers import AutoTokenizer

    if not (tokenizer / "tokenizer.json").is_file():
        raise ValueError(f"{tokenizer} is no folder of a tokenizer; give the one that made the shards.")
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    if size != meta["vocab_size"]:
        raise ValueError(
            f"{tokenizer} has {size} tokens, the shards were made with {meta['vocab_size']}; give that one."
        )


def facts_of(data: Path, name: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what streaming has to know of a shard.

    Raises:
        ValueError: Its file has another size.
    """
    facts = read_json(data / f"{name}.json")
    if not facts:  # text as it is: one shard, whose facts are in meta.json
        facts = {key: meta[key] for key in ("dtype", "vocab_size")} | meta[name]
    size = (data / f"{name}.bin").stat().st_size
    if size != facts["tokens"] * np.dtype(meta["dtype"]).itemsize:
        raise ValueError(
            f"{data / name}.bin has {size:,} bytes, which is not {facts['tokens']:,} tokens; prepare the data again."
        )
    return facts


def copy_shard(data: Path, name: str, folder: Path, published: str) -> None:
    """Copy the files of one shard under its published name."""
    for kind in (".bin", ".starts.npy", ".parquet"):
        if (data / f"{name}{kind}").exists():
            link_or_copy(data / f"{name}{kind}", folder / f"{published}{kind}")


def without_texts(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without examples of documents: what was dropped may have been dropped for its content."""
    dropped = {reason: {"documents": found["documents"]} for reason, found in report["dropped"].items()}
    return {key: value for key, value in report.items() if key != "near_duplicate_groups"} | {"dropped": dropped}


def plain_card(meta: dict[str, Any]) -> str:
    """Return a card for shards of text as it is."""
    train, val = (
        "{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes".format(**meta[s]) for s in ("train", "val")
    )
    return (
        "---\nlicense: other\ntags: [hf_scratch, tokenized]\ntask_categories: [text-generation]\n---\n\n"
        f"# Token shards\n\nTraining: {train}. Held out: {val}. The text was taken as it is; its origin and licence "
        f"are for the publisher to add.\n\nStreams of little-endian {meta['dtype']} token ids: a separator, a "
        "document, a separator and so on. `*.starts.npy` holds the position of each separator before a document, "
        "`tokenizer/` the tokenizer.\n"
    )


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a folder in one commit; return the address of the data set."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        commit_message="Add token shards",
        delete_patterns="*",
    )
    return str(address)


if __name__ == "__main__":
    main()
