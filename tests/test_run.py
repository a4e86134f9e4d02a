"""The pipeline as one command: who stops it stops the stage that is under way, which saves first."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_pretrain import SIZES, arguments, corpus, metrics, one_thread

from training.pretrain import main as pretrain

__all__ = ["corpus"]  # a fixture that is used here too


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_told_to_stop_it_waits_until_the_stage_has_saved(
    corpus: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM comes to the pipeline alone, Ctrl-C to all that the terminal runs. Nobody else works there meanwhile."""
    endless = SIZES | {"max_steps": 1_000_000, "eval_steps": 1_000_000, "save_steps": 1_000_000}
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(endless))
    run = tmp_path / "run"
    run.mkdir()
    for inputs in ("data", "tokenizer"):
        (run / inputs).symlink_to(corpus / inputs)
    command = [sys.executable, "-m", "training.run", str(tmp_path), "--output_dir", str(run)]
    process = subprocess.Popen(command, env=one_thread(), start_new_session=True)
    while not (run / "pretrain" / "metrics.jsonl").exists() or not metrics(run / "pretrain"):
        assert process.poll() is None
        time.sleep(0.1)
    with pytest.raises(SystemExit, match="another process works in"):
        pretrain(arguments(run, run / "pretrain", **endless))
    if name == "SIGTERM":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 1
    shown = "".join(capfd.readouterr())
    assert "stopped after step" in shown and "the same command skips what is done and goes on here" in shown
    assert len(list((run / "pretrain" / "checkpoints").glob("step-*"))) == 1
