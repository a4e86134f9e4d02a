"""The report: what it shows of a run and of several, that it needs no network, and that nothing in it is markup."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import report
from training.evaluation.anchors import find_anchors
from training.evaluation.charts import line_chart, ticks
from training.evaluation.markdown import write_report
from training.evaluation.page import write_page
from training.evaluation.samples import quoted
from training.evaluation.statistics import mcnemar, mean, rate
from training.stage.files import read_json
from training.stage.page import templates

EVIL = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """Collects the elements, texts and attributes of a page, and checks that what opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text, self.open = "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def stories(share: int) -> dict[str, Any]:
    parts = {part: rate(share, 10) for part in ("hero", "item", "place", "problem", "complete")}
    rates = {key: rate(share, 10) for key in ("followed", "ended", "followed_sampled", "happy", "happy_of_followed")}
    lengths = {"tokens": mean([90.0, 100.0, 110.0]), "repetition": mean([0.1, 0.2])}
    return {
        **rates,
        "parts": parts,
        **lengths,
        "distinct_1": mean([0.2]),
        "distinct_2": mean([0.4, 0.5]),
        "distinct_3": mean([0.6]),
    }


def make_run(folder: Path, bits: float = 0.25) -> Path:
    """Write the files of a finished run, without its models."""

    def record(stage: str, **more: Any) -> None:
        content = {
            "stage": stage,
            "status": "done",
            "config": {"learning_rate": 0.1},
            "inputs": {"data": {"path": "secret/place", "sha256": "ab" * 32}},
            "commit": "0123456789abcdef",
            "versions": {"torch": "2.13.0"},
            "machine": {"cpus": 2, "accelerators": []},
            "seconds": 100.0,
        }
        (folder / stage).mkdir(parents=True)
        (folder / stage / "stage.json").write_text(json.dumps(content | more))

    record("pretrain")
    finding = {"what": "duplicate rows", "found": "3 of 40", "level": "warning", "note": "kept"}
    record("sft", data=[finding])
    record("dpo")
    record("eval")
    line = {"step": 10, "train_loss": 3.0, "val_loss": None, "val_bpb": 1.5}
    metrics = [line, line | {"step": 20, "train_loss": 2.0, "val_loss": 2.5, "val_bpb": 1.2}]
    (folder / "pretrain/metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    line = {"step": 1, "loss": 0.69, "rewards/margins": 0.0, "kl": 0.0, "logps/chosen": -20.0, "logps/rejected": -21.0}
    (folder / "dpo/metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = {"bits_per_byte": bits, "low": bits - 0.01, "high": bits + 0.01, "perplexity": 2.0, "documents": 9}
    text |= {"tokens": 100, "bytes": 400, "context": 64, "stride": 32}
    models = {
        "sft": {"parameters": 1000, "text": text, "texts": {}, "stories": stories(5)},
        "dpo": {"parameters": 1000, "text": text | {"bits_per_byte": bits * 1.04}, "texts": {}, "stories": stories(9)},
    }
    said = {"text": EVIL, "tokens": 3, "ended": True, "followed": True, "happy": False}
    test = mcnemar([False] * 4 + [True], [True] * 5)
    results = {
        "models": models,
        "prompts": {"count": 10, "split": "test", "seed": 0, "temperature": 0.7, "max_new_tokens": 99},
        "samples": [{"prompt": EVIL, "answers": {"sft": said, "dpo": said}}],
        "paired": [{"from": "sft", "to": "dpo", "followed": test, "happy": test}],
        "curves": [],
    }
    (folder / "eval/results.json").write_text(json.dumps(results))
    return folder


def test_a_page_shows_all_of_a_run(tmp_path: Path) -> None:
    source = write_page([make_run(tmp_path / "a")], tmp_path / "page.html").read_text()
    page = Page(source)
    for shown in (
        "0.2500",
        "0.2400 to 0.2600",
        "+4.0 %",
        "4 gained, 0 lost, p = 0.125",
        "duplicate rows",
        "3 of 40",
        "warning",
    ):
        assert shown in page.text
    for shown in ("Reward margin", "KL to the reference", "Bits per byte of held-out text", "learning_rate", "2.13.0"):
        assert shown in page.text
    assert page.text.count(EVIL) == 3 and "script" not in page.tags and "img" not in page.tags
    # Four stages of 100 s on two cores: 6 min 40 s at 20 W.
    assert "6 min 40 s" in page.text and "2.22 Wh" in page.text and "estimated, not measured" in page.text
    assert "secret" not in source


def test_what_a_model_wrote_is_text_in_both_reports(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    results = read_json(run / "eval/results.json")
    common = {"words": 9, "grams": 0.25, "passage": EVIL}
    sample = {"prompt": EVIL, "temperature": 0.5, "text": f"{EVIL}\n# no title\n&lt;b&gt;", "ended": True}
    sample |= {"in_training": common, "held_out": {"words": 6.5, "grams": None}}
    text = {"words": 12_345_678, "tokens": 20_000_000, "share": 0.5, "seconds": 9.5}
    written = {"model": "sft", "seed": 0, "tokens": 128, "passages": 4, "training_text": text, "samples": [sample]}
    results["models"]["sft"]["tasks"] = {"blimp": {"rows": 9, "acc": {"value": 0.61, "low": 0.605, "high": 0.615}}}
    results |= {"text_samples": written, "anchors": find_anchors(results["models"])}
    (run / "eval/results.json").write_text(json.dumps(results))

    source = write_page([run], tmp_path / "page.html").read_text()
    page = Page(source)
    assert page.text.count(EVIL) == 3 + 3 and "script" not in page.tags and "img" not in page.tags
    assert "&lt;b&gt;" in page.text  # what the model spelled, not what it would mean
    for shown in ("9 words in a row and 25.0 %", "6.5 and none", "temperature 0.5", "50 %, in evenly spaced pieces"):
        assert shown in page.text
    assert "61.0 %" in page.text and "64.4 %" in page.text and "10M words" in page.text
    assert "https://github.com/babylm-org/babylm-eval" in page.attributes["href"]
    assert not {"src", "srcset", "action"} & page.attributes.keys()

    write_report(results, tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<(?!https://)", report) and "> \\# no title" in report
    assert "> \\&lt;b\\&gt;" in report
    assert "| GPT-2, BabyLM 2026 small | 10M words |  | 64.4 % |" in report


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    source = write_page([make_run(tmp_path / "a")], tmp_path / "page.html").read_text()
    assert not {"src", "href", "srcset", "action"} & Page(source).attributes.keys()
    assert not any(word in source for word in ("http:", "https:", "url(", "@import", "<link"))
    assert "prefers-color-scheme: dark" in source


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b", bits=0.5))]
    report.main(runs)
    printed = capsys.readouterr().out
    assert "| a: sft | a: dpo | b: sft | b: dpo |" in printed and "+100.0 %" in printed
    page = Page((tmp_path / "report.html").read_text())
    assert "a: training" in page.text and "b: training" in page.text and "b: What each stage changed" in page.text
    assert (tmp_path / "report.md").read_text() in printed


def test_a_run_that_was_not_evaluated_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "eval/results.json").unlink()
    report.main([str(run)])
    assert "Not evaluated yet" in Page((run / "report.html").read_text()).text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="report: .*nowhere is no run"):
        report.main([str(tmp_path / "nowhere")])


def test_the_record_of_the_quickstart_has_a_page(tmp_path: Path) -> None:
    record = Path(__file__).parent.parent / "training/records/quickstart"
    models = read_json(record / "eval/results.json")["models"]
    page = Page(write_page([record], tmp_path / "page.html").read_text())
    assert all(name in page.text for name in models) and page.tags.count("figure") > 5


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6), count=st.integers(2, 8))
def test_ticks_enclose_what_is_drawn(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert found[0] <= low + 1e-9 * max(1, abs(low)) and found[-1] >= (low + span) - 1e-9 * max(1, abs(low + span))
    assert 2 <= len(found) <= 2 * count + 3


@pytest.mark.parametrize("points", [[(1, 0.5)], [(0, 1.0), (5, 1.0)], [(1, -2.0), (2, 3e5)]])
def test_any_line_is_drawn_inside_its_frame(points: list[tuple[float, float]]) -> None:
    drawn = '{% from "evaluation/charts.html" import line_chart %}{{ line_chart(chart) }}'
    page = Page(templates().from_string(drawn).render(chart=line_chart(EVIL, [("one", points), ("none", [])])))
    places = [pair.split(",") for pair in page.attributes["points"][0].split()]
    assert all(0 <= float(x) <= 440 and 0 <= float(y) <= 220 for x, y in places) and EVIL in page.text


def test_nothing_in_a_quote_is_markup() -> None:
    assert quoted("a\n# b *c* <b>") == "> a\n> \\# b \\*c\\* \\<b\\>"
