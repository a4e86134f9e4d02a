"""Debian's browser and where pictures of pages go, for the tests of both pages: `conftest.py` takes the fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; apt-get install chromium fonts-dejavu-core")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that SCREENS names, or a temporary one."""
    folder = Path(os.environ.get("SCREENS") or tmp_path_factory.getbasetemp() / "screens")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreens are in {folder}")
    return folder
