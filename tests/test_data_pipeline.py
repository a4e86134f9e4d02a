"""The deep path of the data stage, run as a user runs it: what is planted is found, nothing is lost, nothing depends
on workers or interruptions, and a model learns from what comes out.
"""

import gzip
import hashlib
import json
import os
import signal
import string
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from archives import PARAGRAPH, WIKI, page, warc
from planted import plant
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_scratch.hub.client import Target
from hf_scratch.hub.publish_data import publish_data
from training.engine.token_shards import load_shards
from training.prepare_data import main as prepare_data

ROOT = Path(__file__).parent.parent
PLAY = ROOT / "shared" / "data" / "tinyshakespeare.txt"


def recipe(folder: Path, **settings: Any) -> Path:
    """Write a recipe; small ones are quick with few tasks."""
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"tasks": 2, "shards": 2} | settings, sort_keys=False))
    return path


def run(config: Path, tokenizer: Path, output: Path, *options: str) -> dict[str, Any]:
    """Run the stage in this process with one worker and return its report."""
    words = ["--config", str(config), "--tokenizer", str(tokenizer), "--output_dir", str(output), "--workers", "1"]
    prepare_data([*words, *options])
    return json.loads((output / "data_report.json").read_text())


def check_books(report: dict[str, Any]) -> None:
    for row in report["sources"].values():
        assert row["documents_in"] == row["documents_out"] + sum(row["dropped"].values())
    total = report["total"]
    assert total["documents_in"] == total["documents_out"] + total["documents_dropped"]
    assert total["documents_dropped"] == sum(found["documents"] for found in report["dropped"].values())


def listed(output: Path) -> dict[str, str]:
    """Return id and reason of everything that was dropped, from the lists beside the shards."""
    lines = [line for path in (output / "dropped").glob("*.gz") for line in gzip.open(path, "rt")]
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    return folder


def documents_of(output: Path, tokenizer: Path, split: str = "train") -> dict[str, str]:
    """Return the text of each document in the shards by its id, decoded."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    meta = json.loads((output / "meta.json").read_text())
    texts = {}
    for name in meta[split].get("shards", [split]):
        tokens = np.fromfile(output / f"{name}.bin", dtype=meta["dtype"])
        starts = np.load(output / f"{name}.starts.npy")
        origins = pyarrow.parquet.read_table(output / f"{name}.parquet").to_pylist()
        assert [row["start"] for row in origins] == starts.tolist()
        for row in origins:
            texts[row["id"]] = words.decode(tokens[row["start"] + 1 : row["start"] + row["tokens"]])
            assert tokens[row["start"]] == tokens[row["start"] + row["tokens"]] == words.bos_token_id
    return texts


@pytest.mark.slow
def test_planted_defects_are_found_and_no_clean_document_is_lost(tmp_path: Path, tokenizer: Path) -> None:
    corpus = plant()
    corpus.write(tmp_path / "corpus.jsonl")
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus.questions))
    steps: list[Any] = [
        "fix_encoding",
        "normalize",
        "mask",
        {"language": {"keep": ["en"]}},
        "gopher_quality",
        "gopher_repetition",
        "fineweb_quality",
        {"decontaminate": {"files": str(tmp_path / "eval.jsonl")}},
        "exact_duplicates",
        "near_duplicates",
    ]
    source = {"name": "corpus", "files": str(tmp_path / "corpus.jsonl"), "license": "cc0-1.0"}
    report = run(recipe(tmp_path, sources=[source], steps=steps), tokenizer, tmp_path / "out")
    check_books(report)
    dropped = listed(tmp_path / "out")
    kept = documents_of(tmp_path / "out", tokenizer) | documents_of(tmp_path / "out", tokenizer, "val")
    assert len(dropped) + len(kept) == len(corpus.texts) and not set(dropped) & set(kept)

    partner = {  # the clean document that a copy was made of; one of the two has to go
        name: f"clean-{number + {'copy-100': 0, 'copy-90': 50, 'copy-80': 100}[kind]}"
        for kind in ("copy-100", "copy-90", "copy-80")
        for number, name in enumerate(corpus.kinds[kind])
    }
    expected = {
        "copy-100": "exact_duplicate",
        "copy-90": "near_duplicate",
        "copy-80": "near_duplicate",
        "boilerplate": "gopher",
        "language": "language",
        "leak": "decontaminate",
    }
    recall = {}
    for kind, reason in expected.items():
        names = [[name, partner.get(name, name)] for name in corpus.kinds[kind]]
        found = [any(dropped.get(name, "").startswith(reason) for name in pair) for pair in names]
        recall[kind] = sum(found) / len(found)
    recall["mail"] = np.mean(["@mail" not in kept[name] and " 8." not in kept[name] for name in corpus.kinds["mail"]])
    recall["mojibake"] = np.mean([kept[name] == corpus.repaired[name] for name in corpus.kinds["mojibake"]])
    copied = set(partner.values())
    lost = [name for name in corpus.kinds["clean"] if name in dropped and name not in copied]
    wrong = [name for name, clean in partner.items() if name in dropped and clean in dropped]
    guilty = [name for name in dropped if name not in corpus.kinds["clean"] or name in copied]
    precision = len(guilty) / len(dropped)
    print("recall", {kind: f"{share:.0%}" for kind, share in recall.items()}, f"precision {precision:.1%}")
    assert all(share >= 0.95 for kind, share in recall.items() if kind != "copy-80"), recall
    assert lost == [] and wrong == [] and precision == 1.0
    assert report["total"]["masked_addresses"] == 100
    groups = report["near_duplicate_groups"]
    assert groups and {entry["kept"] for group in groups for entry in group} == {"yes", "no"}


def everything(folder: Path, play: Path) -> Path:
    """Write real text of all kinds and a recipe that takes it to shards."""
    warc(
        folder / "crawl.warc.gz",
        *(
            (f"http://a.org/{i}", "200 OK", "text/html", page(f"{PARAGRAPH} Page {i} says {i * i}. {PARAGRAPH[i:]}"))
            for i in range(12)
        ),
    )
    article = WIKI[WIKI.index("<page>") : WIKI.index("</page>") + 7]
    articles = [article.replace("Mill<", f"Mill {i}<").replace("corn", f"corn {'x' * i}") for i in range(30)]
    (folder / "wiki.xml").write_text(f"<mediawiki>{''.join(articles)}</mediawiki>")
    (folder / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"text": "A short row of text."}\n' * 50)[:-9])
    standard = Path(sysconfig.get_paths()["stdlib"])
    sources = [
        {"name": "play", "files": str(play), "license": "public domain"},
        {"name": "web", "files": str(folder / "*.warc.gz"), "license": "unknown"},
        {"name": "wiki", "files": str(folder / "wiki.xml"), "license": "cc-by-sa-4.0", "weight": 2.5},
        {"name": "code", "files": str(standard / "json"), "type": "code", "license": "psf-2.0", "weight": 0.5},
        {"name": "manual", "files": str(standard / "pydoc_data"), "type": "code", "license": "psf-2.0"},
        {"name": "rows", "files": str(folder / "broken.jsonl.gz")},
        {"name": "stories", "stories": 200, "license": "apache-2.0"},
    ]
    steps: list[Any] = [
        "fix_encoding",
        {"normalize": {"sources": ["web", "wiki"]}},
        "mask",
        {"language": {"keep": ["en"], "min_score": 0.2, "sources": ["web", "stories"]}},
        "exact_duplicates",
        "near_duplicates",
    ]
    return recipe(folder, sources=sources, steps=steps, tasks=3, shards=2, max_document_bytes=20_000)


def content(output: Path) -> dict[str, str]:
    """Return the hash of each file that does not hold times or versions."""
    skipped = ("stage.json", "data_report.json", "data_report.html")
    paths = [path for path in output.rglob("*") if path.is_file() and path.name not in skipped]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    for row in report["steps"].values():
        row.pop("seconds", None)
        row.pop("mb_per_s", None)
    return report


@pytest.mark.long
def test_real_text_end_to_end_by_one_worker_or_two_and_through_an_interruption(tmp_path: Path) -> None:
    from training.pretrain import main as pretrain
    from training.train_tokenizer import main as train_tokenizer

    play = PLAY
    if not play.exists():
        # A clone without the shared play: the same shape of text from what every Python has.
        play = tmp_path / "play.txt"
        topics = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
        play.write_text(topics.read_text(encoding="utf-8").replace("\\n", "\n"))
    config, words = everything(tmp_path, play), str(tmp_path / "tokenizer")
    train_tokenizer(["--output_dir", words, "--files", str(play), "--vocab_size", "600"])
    report = run(config, Path(words), tmp_path / "one")
    check_books(report)
    assert {name: row["documents_out"] > 0 for name, row in report["sources"].items()} == dict.fromkeys(
        report["sources"], True
    )
    assert report["dropped"]["corrupt_file"]["documents"] == 1 and not (tmp_path / "one" / "work").exists()

    # The same with two workers, killed twice on the way.
    command = [sys.executable, "-m", "training.prepare_data", "--config", str(config), "--tokenizer", words]
    command += ["--output_dir", str(tmp_path / "two"), "--workers", "2"]
    for mark in ("ledger/clean-0000?.json", "parts/*.tokens"):
        kill_when(command, tmp_path / "two" / "work", mark)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "clean: done before" in finished.stdout, finished.stdout
    assert content(tmp_path / "one") == content(tmp_path / "two")
    again = json.loads((tmp_path / "two" / "data_report.json").read_text())
    assert without_times(again) == without_times(report)

    copies = [row["id"] for row in origins(tmp_path / "one") if row["source"] == "wiki"]
    assert {copies.count(name) for name in copies} == {2, 3}
    pretrain(
        [
            *("--data", str(tmp_path / "one"), "--tokenizer", words, "--output_dir", str(tmp_path / "model")),
            *("--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_steps", "60"),
            *("--context_length", "64", "--batch_rows", "8", "--learning_rate", "0.01", "--warmup_steps", "5"),
            *("--log_steps", "20", "--eval_steps", "60"),
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] - 0.3


def origins(output: Path) -> list[dict[str, Any]]:
    return [row for path in output.glob("train-*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]


def kill_when(command: list[str], work: Path, mark: str) -> None:
    """Start a command and kill all of its processes as soon as a file is there."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not list(work.glob(mark)):
        time.sleep(0.002)
    assert process.poll() is None, f"it ended before there was {mark}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


SBATCH = """#!/bin/bash
# As the real one: the script comes last, and runs once for each number of its array.
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for ((i = 0; i <= last; i++)); do
    SLURM_JOB_ID=1 SLURM_NODELIST=localhost SLURM_ARRAY_TASK_ID=$i bash "$script" >> "$FAKE_LOG" 2>&1 || exit 1
done
cp "$script" "$(dirname "$FAKE_LOG")/script"
echo "Submitted batch job 1"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.long
def test_slurm_runs_the_same_recipe(tmp_path: Path, tokenizer: Path) -> None:
    """The commands of Slurm are stand-ins that run a script at once; scripts, pickles and tasks are the real ones."""
    (tmp_path / "bin").mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    settings: dict[str, Any] = {"sources": [{"name": "s", "stories": 30}], "tasks": 1, "shards": 1}
    run(recipe(tmp_path, **settings), tokenizer, tmp_path / "here")
    settings |= {"executor": "slurm", "executor_options": {"time": "1:00:00", "partition": "cpu"}}
    config = recipe(tmp_path, **settings)
    command = [sys.executable, "-m", "training.prepare_data", "--config", str(config), "--tokenizer", str(tokenizer)]
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "FAKE_LOG": str(tmp_path / "log")}
    command += ["--output_dir", str(tmp_path / "there")]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr + (tmp_path / "log").read_text()
    assert "#SBATCH --partition=cpu" in (tmp_path / "log").with_name("script").read_text()
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_the_shards_hold_what_the_documents_say(tmp_path: Path, tokenizer: Path) -> None:
    texts = {f"d{i}": f"Text {i} with <|im_end|> and <|endoftext|> and é🦊 {'word ' * i}" for i in range(40)}
    rows = [{"id": name, "text": text, "url": f"http://a/{name}"} for name, text in texts.items()]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": " "}]))
    source = {"name": "rows", "files": str(tmp_path / "t.jsonl"), "license": "mit"}
    config = recipe(tmp_path, sources=[source], val_fraction=0.2)
    report = run(config, tokenizer, tmp_path / "out")
    check_books(report)
    train, val = documents_of(tmp_path / "out", tokenizer), documents_of(tmp_path / "out", tokenizer, "val")
    assert train | val == texts and not set(train) & set(val) and val
    shards = load_shards(tmp_path / "out", "train")
    assert len(shards.starts) == len(train) and shards.num_bytes == sum(len(texts[name].encode()) for name in train)
    assert len(shards.tokens) == report["splits"]["train"]["tokens"]
    assert {row["url"] for row in origins(tmp_path / "out")} == {f"http://a/{name}" for name in train}
    assert list(train) != sorted(train, key=lambda name: int(name[1:]))
    # Nothing has changed: nothing is done. More data: what was held out stays held out.
    before = (tmp_path / "out" / "stage.json").stat().st_mtime_ns
    run(config, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "stage.json").stat().st_mtime_ns == before
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write("".join(json.dumps({"id": f"e{i}", "text": f"More text {i}"}) + "\n" for i in range(20)))
    run(config, tokenizer, tmp_path / "out")
    assert set(val) <= set(documents_of(tmp_path / "out", tokenizer, "val"))
    assert set(train) <= set(documents_of(tmp_path / "out", tokenizer))


def test_its_worker_processes_load_nothing_that_takes_long() -> None:
    code = "import sys, training.prepare_data, training.corpus.passes; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "trl", "datasets", "pyarrow"} & set(ran.stdout.split())


def test_the_work_may_lie_on_object_storage(tmp_path: Path, tokenizer: Path) -> None:
    settings: dict[str, Any] = {
        "sources": [{"name": "s", "stories": 40}],
        "steps": ["normalize", "exact_duplicates", {"near_duplicates": {"num_buckets": 2}}],
        "tasks": 2,
    }
    run(recipe(tmp_path, **settings), tokenizer, tmp_path / "here")
    run(recipe(tmp_path, **settings, work_dir="memory://work"), tokenizer, tmp_path / "there")
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_recipes_may_share_a_work_folder(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(20)))
        source = {"name": name, "files": str(tmp_path / f"{name}.jsonl")}
        config = recipe(
            tmp_path, sources=[source], tasks=1, shards=1, val_fraction=0.3, work_dir=str(tmp_path / "work")
        )
        run(config, tokenizer, tmp_path / name)
    for name in ("one", "two"):
        assert {text.split()[0] for text in documents_of(tmp_path / name, tokenizer).values()} == {name}


def test_a_changed_evaluation_file_starts_the_work_again_and_none_of_its_folders_becomes_public(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = string.ascii_lowercase
    texts = [" ".join(first + second for second in letters[:15]) for first in letters]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    evaluation, output = tmp_path / "eval1.jsonl", tmp_path / "out"
    evaluation.write_text(json.dumps({"question": texts[0]}) + "\n" + json.dumps({"question": "too short"}) + "\n")
    source = {"name": "t", "files": str(tmp_path / "t.jsonl")}
    steps = [{"decontaminate": {"files": [str(tmp_path / "eval*.jsonl")]}}]
    config = recipe(tmp_path, sources=[source], steps=steps, tasks=1, shards=1, val_fraction=0.3)
    report = run(config, tokenizer, output)
    assert report["decontamination"] == {"texts": 2, "n_grams": 3, "texts_too_short_to_find": 1}
    assert "1 of 2 texts have fewer than 13 words" in capsys.readouterr().out
    assert "1 of these texts have too few words" in (output / "data_report.html").read_text()
    for name in ("data_report.json", "data_report.html", "dataset_card.md"):
        assert "eval*.jsonl" in (output / name).read_text() or name.endswith("html")
        assert str(tmp_path) not in (output / name).read_text()
    publish_data(output, Target("user/shards", "dataset"), None, print, dry_run=True)
    dropped = report["total"]["documents_dropped"]
    evaluation.write_text(evaluation.read_text() + json.dumps({"question": texts[1]}) + "\n")
    assert dropped == 1 and run(config, tokenizer, output)["total"]["documents_dropped"] == 2


FEW_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
from datatrove.io import get_datafolder
from training.corpus import shards as tokens
from training.corpus.readers.plain import read_documents
from training.corpus.recipe import DocumentSource

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sources = [{"name": name, "files": str(Path(sys.argv[1]) / name)} for name in ("many", "few")]
texts = list(read_documents(DocumentSource(sources=sources, val_fraction=0.0), "train"))
assert sorted(texts) == sorted([*map(str, range(200)), "few"]) and "few" in texts[:2]

tokens.PART_BYTES = 5000
folder, meta = get_datafolder(sys.argv[1]), {"shards": 200, "dtype": "uint16"}
for rank in range(2):
    parts = tokens.Parts(folder, 201, rank)
    for number in range(1000):
        parts.write(number % 201, number, np.array([number, rank], dtype="uint16"), 1, {})
    parts.close()
shuffle = tokens.Shuffle(folder, meta, 2)
for shard, name in enumerate(tokens.shard_names(200)):
    expected = [token for rank in range(2) for number in range(shard, 1000, 201) for token in (number, rank)]
    assert np.frombuffer(shuffle.gather(name, "tokens"), dtype="uint16").tolist() == expected
assert len(parts.ends) > 1
"""


def test_few_open_files_are_enough_for_many_files_and_shards(tmp_path: Path) -> None:
    for name in ("many", "few"):
        (tmp_path / name).mkdir()
    for number in range(200):
        (tmp_path / "many" / f"{number}.txt").write_text(str(number))
    (tmp_path / "many" / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "few" / "few.txt").write_text("few")
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout == "not read: invalid_utf8 1\n", ran.stderr


def test_a_tokenizer_learns_from_the_same_sources(tmp_path: Path) -> None:
    from training.train_tokenizer import main as train_tokenizer

    (tmp_path / "wiki.xml").write_text(WIKI + "</mediawiki>")
    sources = [{"name": "s", "stories": 200}, {"name": "wiki", "files": str(tmp_path / "wiki.xml")}]
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump({"sources": sources, "vocab_size": 500}))
    train_tokenizer(["--config", str(tmp_path / "tokenizer.yaml"), "--output_dir", str(tmp_path / "t")])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "t")) == 500


def test_the_report_shows_documents_as_text(tmp_path: Path, tokenizer: Path) -> None:
    rows = ["<script>alert(1)</script> and | so on"] * 3 + [f"another {i}" for i in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = {"name": "<b>rows</b>", "files": str(tmp_path / "t.jsonl")}
    run(recipe(tmp_path, sources=[source], steps=["exact_duplicates"]), tokenizer, tmp_path / "out")
    shown = (tmp_path / "out" / "data_report.html").read_text()
    assert "&lt;script&gt;alert(1)" in shown and "<script" not in shown and "<b>rows" not in shown
    assert "<b>exact_duplicate</b> <small>2 (74 bytes)" in shown
    assert "<b>" not in (tmp_path / "out" / "dataset_card.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": [{"gopher_quality": {"min_words": 3}}]}, "step gopher_quality: .*unexpected keyword.*'min_words'"),
        ({"steps": [{"language": {"model": "none.bin"}}]}, "there is no model at none.bin"),
        ({"steps": [{"decontaminate": {"files": "none.jsonl"}}]}, "none.jsonl matches no file"),
        ({"steps": [{"near_duplicates": {"grams": 3}}]}, "step near_duplicates"),
        ({"files": ["x.txt"]}, "for the one source that names no text of its own"),
        ({"steps": [{"decontaminate": {}}]}, "step decontaminate needs `files`"),
        ({"tasks": 0}, "tasks=0 must be between 1"),
        ({"steps": ["gopher_quality"]}, r"there is no train text: of 10 documents 0 are left \(gopher_quality"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, tokenizer: Path, settings: dict[str, Any], message: str) -> None:
    sources = [{"name": "stories", "stories": 10}]
    if "train text" in message:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"x {i}"}) + "\n" for i in range(10)))
        sources = [{"name": "t", "files": str(tmp_path / "t.jsonl")}]
    with pytest.raises(SystemExit, match=message):
        run(recipe(tmp_path, sources=sources, **settings), tokenizer, tmp_path / "out")
