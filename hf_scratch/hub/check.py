"""The outcome of a check, of a model folder or of what is to be published."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and what was found."""

    name: str
    passed: bool
    detail: str = ""
