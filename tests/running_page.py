"""The page in the browser, served, and a real browser to visit it: `conftest.py` takes the fixtures from here.

BROWSER_RELEASE names a release to show in place of one of noise, for pictures and numbers that mean something.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_release import named_or_noise
from transformers import PreTrainedTokenizerBase

PAGE = Path(__file__).parent.parent / "spaces_app" / "browser"


@dataclass
class Visit:
    """A browser window on the page, and what went wrong in it."""

    page: Any
    context: Any
    complaints: list[str] = field(default_factory=list)  # errors of the console, and requests to other machines

    def ready(self) -> "Visit":
        """Wait until the model is there."""
        self.page.locator("#loading.ready").wait_for()
        return self

    def say(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send").click()

    def answered(self) -> str:
        """Wait until the answer is whole and return it."""
        self.page.get_by_role("button", name="Try this answer again").wait_for()
        return self.page.locator(".turn.assistant .text").last.inner_text()

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of npm, from the cache or the registry; without both there is nothing to test."""
    from hf_scratch.export.npm import write_vendor

    folder = tmp_path_factory.mktemp("vendor")
    try:
        write_vendor(folder)
    except ValueError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(f"npm's registry cannot be reached, and its packages are not in the cache: {error}")
    return folder


@pytest.fixture(scope="session")
def page_release(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """The folder of the released model, with another stage beside it."""
    return named_or_noise("BROWSER_RELEASE", tmp_path_factory.mktemp("page-release"), make_model, tiny_tokenizer)


@pytest.fixture(scope="session")
def page_folder(page_release: Path, vendor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with its models, as `publish` makes it."""
    from hf_scratch.export.browser import build_page
    from hf_scratch.hub.page import page_models

    folder = tmp_path_factory.mktemp("page") / "page"
    build_page(PAGE, page_models(page_release.parent), folder, print)
    return folder


@pytest.fixture
def page_copy(page_folder: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(page_folder, tmp_path / "page", copy_function=os.link))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder and give its address."""
    from hf_scratch.export.browser_server import make_server

    server = make_server(folder)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def page_url(page_folder: Path) -> Iterator[str]:
    with served(page_folder) as url:
        yield url


@pytest.fixture
def visit_page(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Open an address in a window of its own."""
    contexts = []

    def visit(url: str, width: int = 1280, height: int = 800, scheme: str = "light", before: str = "") -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(60_000)  # ms; other work may keep the processor busy
        contexts.append(context)
        if before:
            context.add_init_script(before)
        here = Visit(context.new_page(), context)
        here.page.on("console", lambda m: here.complaints.append(m.text) if m.type == "error" else None)
        here.page.on("pageerror", lambda error: here.complaints.append(str(error)))
        context.on("request", lambda r: here.complaints.append(r.url) if not own(r.url, url) else None)
        here.page.goto(url)
        return here

    yield visit
    for context in contexts:
        context.close()


def own(address: str, url: str) -> bool:
    """Whether an address is of the page's own origin, or nowhere but in the browser."""
    origin = "/".join(url.split("/")[:3])
    return address.startswith((f"{origin}/", "blob:", "data:"))
