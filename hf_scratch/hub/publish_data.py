"""Publishes token shards as a data set of the Hub: shards, origin of each document, tokenizer, report and card.

Pretraining streams it, by `--data hf://datasets/user/name`. Texts of dropped documents stay here: they may have been
dropped for what they say.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_scratch.hub import client
from hf_scratch.hub.client import Target
from hf_scratch.hub.files import link_or_copy
from hf_scratch.hub.leaks import check_leaks

ITEM_BYTES = {"uint16": 2, "uint32": 4}


def publish_data(
    run: Path, target: Target, private: bool | None, say: Callable[[str], None], *, dry_run: bool = False
) -> None:
    """Publish the shards of a run in one commit, in place of all that the branch held.

    Args:
        run: Folder of the run, or of its data.
        private: Of a repository that is made; None is the owner's default.
        say: Gets each line about what is done.
        dry_run: Do all but what needs the Hub.

    Raises:
        ValueError: No finished shards, shards of another size than their records say, no tokenizer that fits them, a
            secret or a path of this machine in what would be public, or the Hub refused.
    """
    client.check_repo_id(target.repo_id)
    data = find_data(run)
    # Beside the data, where files are linked and not copied.
    with tempfile.TemporaryDirectory(dir=data.absolute().parent, prefix=".publish-") as scratch:
        folder = Path(scratch) / "shards"
        build_folder(data, folder, say)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not (found := check_leaks(folder, files)).passed:
            raise ValueError(
                f"nothing was published, because of {found.detail}; take it out of these files in {data}, "
                "where README.md is dataset_card.md."
            )
        say(f"{target} gets {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")
        if dry_run:
            for path in files:
                say(f"  {path.stat().st_size:>15,} bytes  {path.relative_to(folder)}")
            say("Nothing was sent.")
            return
        upload(folder, target, private)
    say(f"{client.endpoint()}/datasets/{target.repo_id}")


def find_data(run: Path) -> Path:
    """Return the folder that holds the finished shards of a run."""
    for folder in (run / "data", run):
        if (folder / "meta.json").is_file():
            return folder
    raise ValueError(
        f"{run} holds no finished token shards (no data/meta.json); make them with "
        "`python -m training.prepare_data`, or check the path."
    )


def build_folder(data: Path, folder: Path, say: Callable[[str], None] = print) -> None:
    """Write what is published of a folder of shards.

    Raises:
        ValueError: Shards of another size than their records say, or not the tokenizer that made them.
    """
    meta = read_json(data / "meta.json")
    folder.mkdir(parents=True)
    save_tokenizer(data, meta, folder / "tokenizer", say)
    shards = meta["train"].get("shards", ["train"])  # text as it is makes a single one
    published = {"val": "val"} | {name: f"train-{number:05d}" for number, name in enumerate(shards)}
    for name, new_name in published.items():
        write_json(folder / f"{new_name}.json", facts_of(data, name, meta))
        for kind in (".bin", ".starts.npy", ".parquet"):
            if (data / f"{name}{kind}").exists():
                link_or_copy(data / f"{name}{kind}", folder / f"{new_name}{kind}")
    meta["train"]["shards"] = [name for name in published.values() if name != "val"]
    write_json(folder / "meta.json", meta)
    if (data / "data_report.json").is_file():
        write_json(folder / "data_report.json", without_texts(read_json(data / "data_report.json")))
    card = data / "dataset_card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else plain_card(meta)
    (folder / "README.md").write_text(text, encoding="utf-8")


def save_tokenizer(data: Path, meta: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Save the tokenizer that the shards were made with, by the stage's record, or the one of the same run."""
    from transformers import AutoTokenizer

    from hf_scratch.token_ids import refuse_other_tokenizer

    name, beside = read_json(data / "stage.json")["inputs"]["tokenizer"]["path"], data.parent / "tokenizer"
    if not Path(name).is_dir() and beside.is_dir():  # the run was moved here
        name = str(beside)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of the shards, {name}, cannot be read ({str(error).splitlines()[0]}); put it at {beside}."
        ) from None
    if len(tokenizer) != meta["vocab_size"]:
        raise ValueError(
            f"{name} has {len(tokenizer)} tokens, the shards were made with {meta['vocab_size']}; prepare them again."
        )
    refuse_other_tokenizer(meta.get("tokenizer_sha256"), tokenizer, str(data), say)
    tokenizer.save_pretrained(folder)


def facts_of(data: Path, name: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what streaming has to know of a shard.

    Raises:
        ValueError: Its file has another size.
    """
    path = data / f"{name}.json"
    # Text as it is makes one shard, whose facts are in meta.json.
    of_all = {key: meta[key] for key in ("dtype", "vocab_size", "tokenizer_sha256") if key in meta}
    facts = read_json(path) if path.is_file() else of_all | meta[name]
    size = (data / f"{name}.bin").stat().st_size
    if size != facts["tokens"] * ITEM_BYTES[meta["dtype"]]:
        raise ValueError(
            f"{data / name}.bin has {size:,} bytes, which is not {facts['tokens']:,} tokens; prepare the data again."
        )
    return facts


def without_texts(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without examples of documents: what was dropped may have been dropped for its content."""
    dropped = {
        reason: {key: value for key, value in found.items() if key != "examples"}
        for reason, found in report["dropped"].items()
    }
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


def upload(folder: Path, target: Target, private: bool | None) -> None:
    """Make the branch hold the folder and nothing else, in one commit."""
    api = HfApi()
    client.ensure_repo(api, target, private=private)
    # Made a second time, the same commit changes nothing.
    client.call(
        f"the commit to {target}",
        api.upload_folder,
        **target.where,
        revision=target.branch,
        folder_path=folder,
        commit_message="Add token shards",
        delete_patterns="*",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
