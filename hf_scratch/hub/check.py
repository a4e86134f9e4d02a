"""The outcome of a check, of a model folder or of what is to be published."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and what was found."""

    name: str
    passed: bool
    detail: str = ""


def require(checks: Sequence[Check], what: str) -> None:
    """Raise ValueError with the names of the checks that failed, if there are any."""
    failed = [f"{check.name} ({check.detail})" for check in checks if not check.passed]
    if failed:
        raise ValueError(f"{what} failed {len(failed)} of {len(checks)} checks: {'; '.join(failed)}")
