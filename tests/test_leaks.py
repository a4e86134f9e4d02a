"""Secrets and paths of this machine are found in every text that is to be published, and nothing else is."""

from pathlib import Path

import pytest

from hf_scratch.hub.client import hide
from hf_scratch.hub.leaks import check_leaks

LETTERS = "aB3dE6gH9j"
SECRETS = [
    f"hf_{LETTERS * 3}A",
    f"hf_oauth_eyJ{LETTERS}.{LETTERS}-_{LETTERS}",
    f"api_org_{LETTERS * 3}",
    f"github_pat_{LETTERS * 2}_{LETTERS * 3}",
    f"ghp_{LETTERS * 3}",
    f"AIza{LETTERS * 3}_-123",
    f"glpat-{LETTERS * 2}",
    f"xoxb-123456789012-{LETTERS}",
    f"xoxe.xoxp-1-{LETTERS}",
    f"sk-ant-{LETTERS * 3}",
    f"sk_live_{LETTERS * 2}",
    f"npm_{LETTERS * 3}123456",
    f"SG.{LETTERS * 2}.{LETTERS * 4}",
    f"ASIA{'A1' * 8}",
    f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
]
HARMLESS = [
    "hf_scratch.model.configuration_scratch and hf_scratch_of_somebody_who_has_a_long_name_here",
    "https://huggingface.co/user/model-with-a-very-long-name/resolve/main/task-specific-adapters-of-all",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "xox-o-x, sk-learn, risk-of-everything-that-can-be-imagined-by-people, desk-with-twenty-two-drawers-inside",
    "SG.1 and glpat, AIzawa, github_pat_ alone, eyJ.eyJ.",
]


@pytest.mark.parametrize("secret", SECRETS, ids=[secret[:8] for secret in SECRETS])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("app.py", 'TOKEN = "{}"'),
        ("notebook.ipynb", '{{"source": ["# my\\n{}\\n"]}}'),
        ("table.csv", "1,ada,{}\n"),
        (".env", "HF_TOKEN={}"),
        ("run.SH", "curl -H 'Authorization: Bearer {}'"),
        ("Dockerfile", "ENV T={}"),
        ("settings.toml", "my_{} = 1"),
    ],
)
def test_a_secret_is_found_wherever_it_stands_and_is_not_repeated(
    tmp_path: Path, secret: str, name: str, text: str
) -> None:
    (tmp_path / name).write_text("first line\n" + text.format(secret))
    check = check_leaks(tmp_path, [tmp_path / name])
    assert not check.passed and check.detail == f"{name}, line 2: looks like a secret"
    assert secret not in hide(f"the Hub said {secret}.")


def test_text_of_windows_is_read_and_no_binary(tmp_path: Path) -> None:
    (tmp_path / "notes.log").write_text(f"one\ntoken {SECRETS[0]}\n", encoding="utf-16")
    (tmp_path / "weights.bin").write_bytes(b"\0\1" + SECRETS[0].encode())
    (tmp_path / "tokenizer.json").write_text(SECRETS[0])  # a vocabulary may hold anything
    check = check_leaks(tmp_path, sorted(tmp_path.iterdir()))
    assert check.detail == "notes.log, line 2: looks like a secret"


@pytest.mark.parametrize("name", ["notebook.ipynb", "table.csv", "run.sh"])
def test_a_path_is_found_in_every_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("read /home/ada/corpus")
    assert check_leaks(tmp_path, [tmp_path / name]).detail == f"{name}, line 1: a path of this machine"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert check_leaks(tmp_path, [tmp_path / "README.md"]).passed and hide(text) == text
