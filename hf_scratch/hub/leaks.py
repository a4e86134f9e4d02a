"""Finds secrets and paths of this machine in files that are to be published."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_scratch.hub.check import Check

# How tokens and keys begin that give somebody's rights away, and the least that follows.
SECRET = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # within JSON a line break is spelled, too
    r"(?:hf_[A-Za-z0-9]{30,}|hf_(?:oauth|jwt)_[A-Za-z0-9_.-]{20,}|api_org_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{20,}|gsk_[A-Za-z0-9]{30,}|xai-[A-Za-z0-9]{30,}|[rs]k_live_[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|gl(?:pat|dt|rt|ptt|cbt|soat)-[A-Za-z0-9_.-]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}|A(?:KI|SI)A[0-9A-Z]{16}"
    r"|xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}|SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{30,}|dckr_pat_[A-Za-z0-9_-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|tmp|private|mnt|srv|var|opt|content|workspace)/[\w.-]+|\b[A-Za-z]:\\+Users\b"
)


def check_leaks(folder: Path, files: Sequence[Path]) -> Check:
    """Look for secrets and for paths of this machine in files of a folder that is to be published."""
    leaks = list(_leaks(folder, files))
    return Check("no secrets and no paths of this machine", not leaks, ", ".join(leaks[:5]))


def _leaks(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """Where a text file holds a secret or a path of this machine; the secret itself is not repeated."""
    here = [str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 2]
    for path in files:
        if path.name == "tokenizer.json":  # a vocabulary is learnt from text and may hold anything
            continue
        for number, line in enumerate(_lines(path), start=1):
            if SECRET.search(line):
                yield f"{path.name}, line {number}: looks like a secret"
            if LOCAL_PATH.search(line) or any(known in line for known in here):
                yield f"{path.name}, line {number}: a path of this machine"


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file if it is text, whatever its name."""
    with path.open("rb") as file:
        head = file.read(8192)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))  # UTF-16, as some programs of Windows write
    if wide or b"\0" not in head:
        with path.open(encoding="utf-16" if wide else "utf-8", errors="replace") as text:
            yield from text
