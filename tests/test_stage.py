"""The frame of every stage: typos are errors, finished work is skipped, and a write is whole or did not happen."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from hf_scratch.hub.files import hash_file
from training.engine.checkpoint import find_damage, list_checkpoints, load_latest, save_checkpoint
from training.stage import files
from training.stage.config import SameRun, parse_config
from training.stage.files import atomic_folder, hash_input, hash_large_files, read_json, write_json
from training.stage.record import command, open_stage


@dataclass(kw_only=True)
class Settings:
    output_dir: str = field(metadata={"help": "Folder."})
    learning_rate: float = field(default=0.1, metadata={"help": "Rate."})
    files: list[str] = field(default_factory=list, metadata={"help": "Files."})
    pack: bool = field(default=False, metadata={"help": "Pack."})
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata={"help": "Optimizer."})
    steps: int = field(default=1, metadata={"help": "Steps."})
    width: int | None = field(default=None, metadata={"help": "Width."})


def test_yaml_gives_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "stage.yaml"
    recipe.write_text(
        "learning_rate: 3e-4\npack: true\nwidth: null\noptimizer: muon\nfiles: [a, b]\n"
    )  # PyYAML reads 3e-4 as a string
    config = parse_config(Settings, ["--config", str(recipe), "--output_dir", "x"])
    assert parse_config(Settings, [f"--config={recipe}", "--output_dir", "x"]) == config
    assert config == Settings(output_dir="x", learning_rate=3e-4, pack=True, optimizer="muon", files=["a", "b"])
    assert (
        parse_config(Settings, ["--config", str(recipe), "--output_dir", "x", "--learning_rate", "1"]).learning_rate
        == 1
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 0.5", "'learning_rte' is not a setting of this stage; did you mean 'learning_rate'"),
        ("- a\n- b", "must hold `key: value` lines"),
        ("a: [", "is not YAML"),
        ("optimizer: moun", "optimizer: 'moun' does not exist; did you mean 'muon'"),
        ("learning_rate: fast", "learning_rate: 'fast' is no float"),
        ("steps: 1.5", "steps: 1.5 is no int"),
        ("files: book.txt", r"files: 'book.txt' is no list\[str\]"),
        ("pack: 1", "pack: 1 is no bool"),
        ("width: wide", r"width: 'wide' is no int | None"),
    ],
)
def test_mistakes_in_yaml_are_errors(tmp_path: Path, content: str, message: str) -> None:
    recipe = tmp_path / "stage.yaml"
    recipe.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_config(Settings, ["--config", str(recipe), "--output_dir", "x"])


def test_mistakes_on_the_command_line_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--learning_rte does not exist; did you mean 'learning_rate'"):
        parse_config(Settings, ["--output_dir", "x", "--learning_rte", "1"])
    with pytest.raises(ValueError, match="cannot be read"):
        parse_config(Settings, ["--config", str(tmp_path / "none.yaml")])


def test_a_users_mistake_is_one_sentence_without_a_stack() -> None:
    @command
    def main(argv: object = None) -> None:
        raise ValueError("got 3, want 4; give 4.")

    with pytest.raises(SystemExit, match="got 3, want 4; give 4.") as exit_:
        main()
    assert exit_.value.__cause__ is None


def test_a_finished_stage_is_skipped_until_settings_or_inputs_change(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    folder = str(tmp_path / "stage")

    def run(rate: float) -> bool:
        stage = open_stage("s", Settings(output_dir=folder, learning_rate=rate), {"files": [str(text)]}, folder)
        if not stage.done:
            (stage.folder / "result").write_text(text.read_text())
            stage.finish({"loss": 1.0})
        return stage.done

    assert [run(0.1), run(0.1)] == [False, True]
    text.write_text("two")
    assert [run(0.1), run(0.1)] == [False, True]
    assert (tmp_path / "stage.previous" / "result").read_text() == "one"
    assert [run(0.2), run(0.2)] == [False, True]
    record = read_json(Path(folder) / "stage.json")
    assert record["status"] == "done" and record["metrics"] == {"loss": 1.0}
    assert record["config"] == {
        "learning_rate": 0.2,
        "pack": False,
        "optimizer": "adamw",
        "steps": 1,
        "width": None,
    }
    assert record["versions"]["torch"] == torch.__version__


@dataclass(kw_only=True)
class Watched:
    output_dir: str
    rate: float = 0.1
    until: float | None = None
    log_steps: Annotated[int, SameRun()] = 10
    eval_steps: Annotated[int, SameRun(unless=("until",))] = 10
    place: Annotated[str | None, SameRun()] = None


def test_what_changes_no_result_changes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "stage")

    def run(**changes: Any) -> bool:
        stage = open_stage("s", Watched(output_dir=folder, **changes), {}, folder)
        if not stage.done:
            stage.finish({})
        return stage.done

    assert [run(), run(log_steps=1, eval_steps=3, place="s3://x?secret")] == [False, True]
    assert "secret" not in (tmp_path / "stage" / "stage.json").read_text()
    capsys.readouterr()
    assert [run(until=1.0), run(until=1.0, log_steps=5), run(until=1.0, eval_steps=3)] == [False, True, False]
    shown = capsys.readouterr().out
    assert f"s: until, eval_steps changed; the old output is now {tmp_path}/stage.previous\n" in shown
    assert f"s: eval_steps changed; the old output is now {tmp_path}/stage.previous-2\n" in shown
    config = parse_config(Watched, ["--output_dir", folder, "--log_steps", "7", "--place", "there"])
    assert (config.log_steps, config.place) == (7, "there")


def test_no_run_that_was_moved_aside_is_ever_lost(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    for rate in range(4):
        stage = open_stage("s", Watched(output_dir=str(folder), rate=rate), {}, str(folder))
        (stage.folder / "result").write_text(str(rate))
        stage.finish({})
    found = {path.name: (path / "result").read_text() for path in tmp_path.iterdir()}
    assert found == {"stage": "3", "stage.previous": "0", "stage.previous-2": "1", "stage.previous-3": "2"}


def test_a_record_of_an_older_version_is_moved_aside(tmp_path: Path) -> None:
    """As one whose fingerprint was computed from other settings, and before there were inputs by hash."""
    folder = tmp_path / "stage"
    open_stage("s", Watched(output_dir=str(folder)), {}, str(folder)).finish({})
    record = read_json(folder / "stage.json")
    (folder / "result").write_text("old")
    (folder / "stage.json").write_text(json.dumps(record | {"fingerprint": "by another rule"}))
    assert not open_stage("s", Watched(output_dir=str(folder)), {}, str(folder)).done
    assert (tmp_path / "stage.previous" / "result").read_text() == "old" and not (folder / "result").exists()


def test_a_folder_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    """Also where the link points to nothing yet."""
    disk, link = tmp_path / "disk", tmp_path / "runs" / "stage"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk / "mine")
    for rate in (1, 2):
        stage = open_stage("s", Watched(output_dir=str(link), rate=rate), {}, str(link))
        with atomic_folder(link / "model") as model:
            (model / "weights").write_text(str(rate))
        stage.finish({})
    assert link.is_symlink() and [path.name for path in link.parent.iterdir()] == ["stage"]
    assert (disk / "mine" / "model" / "weights").read_text() == "2"
    assert (disk / "mine.previous" / "model" / "weights").read_text() == "1"
    (disk / "models").mkdir()
    (disk / "mine" / "model").rename(disk / "models" / "best")
    (disk / "mine" / "model").symlink_to(disk / "models" / "best")
    with atomic_folder(link / "model") as model:
        (model / "weights").write_text("3")
    assert (disk / "models" / "best" / "weights").read_text() == "3" and (disk / "mine" / "model").is_symlink()


def test_a_raise_alone_lets_a_run_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stage"

    def run(why: str = "", **settings: float) -> bool:
        stage = open_stage("s", Watched(output_dir=str(folder), **settings), {}, str(folder), {"rate": lambda: why})
        kept = (folder / "result").exists()
        (folder / "result").write_text("")
        if not stage.done:
            stage.finish({})
        return kept

    assert [run(rate=1), run(rate=2), run(rate=1), run(rate=2, until=1.0)] == [False, True, False, False]
    assert read_json(tmp_path / "stage.previous" / "stage.json")["config"]["rate"] == 2
    capsys.readouterr()
    assert not run("a rate is for life", rate=3, until=1.0)
    assert "rate was raised from 2 to 3" in (shown := capsys.readouterr().out) and "a rate is for life" in shown


def test_an_unfinished_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "stage")
    first = open_stage("s", Settings(output_dir=folder), {}, folder)
    (first.folder / "checkpoint").write_text("half")
    again = open_stage("s", Settings(output_dir=folder), {}, folder)
    assert not again.done and (again.folder / "checkpoint").read_text() == "half"


def test_the_time_of_a_part_that_was_interrupted_counts(tmp_path: Path) -> None:
    """As long as it wrote something: here for 100 seconds, as the times of its files say."""
    first = open_stage("s", Settings(output_dir=str(tmp_path / "stage")), {}, str(tmp_path / "stage"))
    (first.folder / "metrics.jsonl").write_text("{}")
    begun = (first.folder / "stage.json").stat().st_mtime
    os.utime(first.folder / "metrics.jsonl", (begun + 100, begun + 100))
    os.utime(first.folder, (begun, begun))
    again = open_stage("s", Settings(output_dir=str(tmp_path / "stage")), {}, str(tmp_path / "stage"))
    again.finish({})
    assert 100 <= read_json(again.folder / "stage.json")["seconds"] < 101


def test_the_hash_of_an_input_follows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = hash_input(str(tmp_path))
    (tmp_path / "stage.json").write_text("{}")  # the record of the stage before holds times
    assert hash_input(str(tmp_path)) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_input(str(tmp_path)) != before
    assert hash_input("user/name") == hash_input("user/name") != hash_input("user/other")


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE", 100)
    shard = tmp_path / "train.bin"
    shard.write_bytes(bytes(100))
    (tmp_path / "meta.json").write_text("{}")
    before, read = hash_input(str(tmp_path)), []
    write_json(tmp_path / "stage.json", {"large_files": hash_large_files(tmp_path)})
    monkeypatch.setattr(files, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    assert hash_input(str(tmp_path)) == before and read == ["meta.json"]
    state = shard.stat()
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert hash_input(str(tmp_path)) == before and "train.bin" in read
    shard.write_bytes(bytes(101))
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert hash_input(str(tmp_path)) != before


def test_a_folder_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(OSError, match="could not be written"), atomic_folder(path) as folder:
        (folder / "weights").write_text("new")
        raise RuntimeError("no space left on device")
    assert (path / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def save(folder: Path, step: int, keep: int = 2, val_loss: float | None = None) -> Path:
    def write_shard(beside: Path) -> None:
        (beside / "optimizer").mkdir()
        save_file({"momentum": torch.ones(4)}, beside / "optimizer" / "shard-1.safetensors")

    weights = {"w": torch.full((4,), float(step))}
    return save_checkpoint(folder, step, weights, {"step": step}, keep, val_loss, write_files=write_shard)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00001000"]
    found = load_latest(tmp_path)
    assert found is not None and found[1] == {"step": 1000} and found[0]["w"].tolist() == [1000.0] * 4


def test_the_checkpoint_of_the_lowest_held_out_loss_is_kept_too(tmp_path: Path) -> None:
    for step, val_loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 1.5)):
        save(tmp_path, step, val_loss=val_loss)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]
    save(tmp_path, 6, val_loss=0.5)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json", "optimizer/shard-1.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 2)
    file = checkpoint / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    if name == "manifest.json" and damage == "flip":
        assert find_damage(checkpoint) or json.loads(content) == json.loads(file.read_bytes())
        return
    found = load_latest(tmp_path)
    assert found is not None and found[1] == {"step": 1}
    assert "step-00000002" in capsys.readouterr().out


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A process that may write no file over 64 kB (as if the disk was full) fails with a sentence."""
    script = textwrap.dedent(
        """
        import resource, sys, torch
        from pathlib import Path
        from training.engine.checkpoint import save_checkpoint
        folder = Path(sys.argv[1])
        save_checkpoint(folder, 1, {"w": torch.ones(10)}, {"step": 1}, keep=2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        save_checkpoint(folder, 2, {"w": torch.ones(100_000)}, {"step": 2}, keep=2)
        """
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1 and "OSError" in result.stderr and "could not be written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path) is not None
