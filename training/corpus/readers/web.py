"""Web pages, alone or in archives of a crawl: the main text by trafilatura, archives by warcio.

What is not text, or may not be used, is a `Bad` with its reason.
"""

import codecs
import ctypes
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO

from datatrove.data import Document

from training.corpus.readers.tables import Bad
from training.corpus.readers.text import Found, to_document
from training.corpus.recipe import File

# Longer than any ordinary page needs, so that the result does not depend on how busy the machine is.
PAGE_SECONDS = 60
PR_SET_PDEATHSIG = 1  # linux/prctl.h

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
OWN_CHARSET = re.compile(
    rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w:.-]+)|^\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w:.-]+)", re.IGNORECASE
)
# What a browser reads where a page names a charset, by https://encoding.spec.whatwg.org: the larger one of its family.
ON_THE_WEB = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949",
    "utf-16": "utf-8",  # a page that can say so in ASCII is none
}  # fmt: skip


def extract_page(html: str) -> str:
    """Return the main text of a page, empty if there is none."""
    import trafilatura

    # Without `deduplicate`: what is kept of a page would depend on the pages before it.
    return trafilatura.extract(html, include_comments=False, favor_precision=True, deduplicate=False) or ""


@cache
def _end_with_parent() -> None:
    """Have Linux end this process when the one ends that began it, killed for example; else it would wait for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _extract_in_sandbox(html: str) -> str:
    _end_with_parent()
    return extract_page(html)


@cache
def _sandbox() -> Any:
    """A process that extracts pages, ended and begun anew when one takes too long or too much memory."""
    from datatrove.pipeline.extractors.base import ExtractorSandbox

    return ExtractorSandbox(timeout=PAGE_SECONDS, warmup_text="")


def read_page(html: str, id: str, metadata: dict[str, Any]) -> Found:
    """Return the main text of a page as a document."""
    try:
        text = _sandbox().process_document(html, _extract_in_sandbox)
    except TimeoutError:
        return Bad("page_timeout", id, html[:200], len(html))
    except EOFError:  # the process died
        return Bad("page_failed", id, html[:200], len(html))
    if not text:
        return Bad("no_main_text", id, html[:200], len(html))
    return Document(text, id, metadata=metadata)


def decode_page(data: bytes, charset: str | None) -> str | None:
    """Return a page's characters by its byte-order mark, the charset of its header, or what it says itself; else as
    UTF-8, or as what its bytes look like.
    """
    from charset_normalizer import from_bytes

    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    said = OWN_CHARSET.search(data[:4096])
    for name in (marked, charset, said[said.lastindex or 0].decode() if said else None, "utf-8"):
        try:
            if name:
                known = codecs.lookup(name).name
                return data.decode(ON_THE_WEB.get(known, known)).removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
    best = from_bytes(data[:100_000]).best()
    return data.decode(best.encoding, "replace") if best else None


def read_html(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield the main text of a page."""
    data = stream.read(limit + 1)
    page = decode_page(data, None) if len(data) <= limit else None
    if page is None:
        yield Bad("too_large" if len(data) > limit else "undecodable", file.label, size=len(data))
        return
    yield read_page(page, file.label, {})


def read_warc(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield the main text of each response of a WARC file, or each text of a WET file.

    Raises:
        EOFError: The file ends within a record; warcio itself would take the half for the whole.
    """
    from warcio.archiveiterator import ArchiveIterator

    for record in ArchiveIterator(stream):
        if record.rec_type not in ("response", "conversion"):
            continue
        yield _read_record(record, limit)
        record.content_stream().read()
        if getattr(record.raw_stream, "limit", 0):
            raise EOFError(f"{record.raw_stream.limit} bytes of record {_id_of(record)} are missing")


def _id_of(record: Any) -> str:
    return record.rec_headers.get_header("WARC-Record-ID") or "without id"


def _read_record(record: Any, limit: int) -> Found:
    name, url = _id_of(record), record.rec_headers.get_header("WARC-Target-URI") or ""
    data = record.content_stream().read(limit + 1)
    if len(data) > limit:
        return Bad("too_large", name, url, len(data))
    if record.rec_type == "conversion":
        found = to_document(data, name)
        if isinstance(found, Document):
            found.metadata["url"] = url
        return found
    status = record.http_headers.get_statuscode() if record.http_headers else "200"
    if status != "200":
        return Bad("http_status", name, f"{status} {url}", len(data))
    kind = (record.http_headers.get_header("Content-Type") if record.http_headers else None) or ""
    if kind and "html" not in kind.lower():
        return Bad("not_html", name, f"{kind} {url}", len(data))
    charset = re.search(r"charset=[\"']?([\w-]+)", kind, re.IGNORECASE)
    page = decode_page(data, charset[1] if charset else None)
    if page is None:
        return Bad("undecodable", name, url, len(data))
    return read_page(page, name, {"url": url})
