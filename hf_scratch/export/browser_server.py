"""Serves the page in the browser from this machine, as the Hub serves a static Space."""

import contextlib
import functools
import signal
import sys
import tempfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hf_scratch.export.browser import build_page
from hf_scratch.hub.card import read_metadata
from hf_scratch.hub.page import page_models
from hf_scratch.hub.publish import find_release


class PageHandler(SimpleHTTPRequestHandler):
    """Answers with the headers that the page's README asks for, and tells nobody."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".wasm": "application/wasm", ".svg": "image/svg+xml", ".json": "application/json",
    }  # fmt: skip

    def __init__(self, *args: Any, headers: dict[str, str], **kwargs: Any) -> None:
        self.asked_for = headers
        super().__init__(*args, **kwargs)

    def end_headers(self) -> None:
        """Add the Space's own headers."""
        for name, value in self.asked_for.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file; a browser that has gone needs none of it."""
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the folder on loopback; 0 is any free port."""
    headers = read_metadata(folder).get("custom_headers", {})
    return ThreadingHTTPServer(
        ("127.0.0.1", port), functools.partial(PageHandler, directory=str(folder), headers=headers)
    )


def serve(run: Path, port: int, say: Callable[[str], None]) -> None:
    """Make the page of a run's release and serve it until the process is told to stop."""
    release = find_release(run)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "page"
        build_page(release / "browser", page_models(release), folder, say)
        try:
            server = make_server(folder, port)
        except OSError as error:
            raise ValueError(f"port {port} cannot be had ({error.strerror}); take another one with --port.") from None
        say(f"Open http://127.0.0.1:{server.server_port} (Ctrl-C ends it).")
        server.serve_forever()
