"""Formats that hold text among other things: web pages and archives, wiki dumps, Gutenberg's books, source code.

Kept libraries do the work: trafilatura finds the main text of a page, warcio reads archives, mwparserfromhell takes
the markup out of wiki pages. What is not text, or may not be used, is a `Bad` with its reason.
"""

import codecs
import ctypes
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from datatrove.data import Document

from training.corpus.gutenberg import strip_book
from training.corpus.licenses import is_allowed, license_of
from training.corpus.readers import Found, decode
from training.corpus.recipe import LANGUAGE_OF, Unit
from training.corpus.rows import Bad

# ---- web ----

# Longer than any ordinary page needs, so that the result does not depend on how busy the machine is.
PAGE_SECONDS = 60
PR_SET_PDEATHSIG = 1  # linux/prctl.h


MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
OWN_CHARSET = re.compile(
    rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w:.-]+)|^\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w:.-]+)", re.IGNORECASE
)
# What a browser reads where a page names a charset, by https://encoding.spec.whatwg.org: the larger one of its family.
ON_THE_WEB = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",  # a page that can say so in ASCII is none
}


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


def read_html(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield the main text of a page."""
    data = file.read(limit + 1)
    page = decode_page(data, None) if len(data) <= limit else None
    if page is None:
        yield Bad("too_large" if len(data) > limit else "undecodable", unit.label, size=len(data))
        return
    yield read_page(page, unit.label, {})


def read_warc(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield the main text of each response of a WARC file, or each text of a WET file.

    Raises:
        EOFError: The file ends within a record; warcio itself would take the half for the whole.
    """
    from warcio.archiveiterator import ArchiveIterator

    for record in ArchiveIterator(file):
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
        found = decode(data, name)
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


# ---- wikis ----


def read_mediawiki(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield each article of a MediaWiki XML dump as plain text under its title; redirects and talk are named."""
    from xml.etree import ElementTree

    root = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        root = element if root is None else root
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            yield _read_page(element, unit, limit)
            root.clear()  # else the whole dump would stay in memory


def _read_page(element: Any, unit: Unit, limit: int) -> Found:
    found = {child.tag.rpartition("}")[2]: child for child in element.iter()}
    title, space = _text(found.get("title")), _text(found.get("ns"))
    name = f"{unit.label}/{title}"
    text = _text(found.get("text"))
    if space not in ("", "0"):
        return Bad("not_an_article", name, f"namespace {space}", len(text.encode()))
    if "redirect" in found:
        return Bad("redirect", name, size=len(text.encode()))
    if len(text.encode()) > limit:
        return Bad("too_large", name, size=len(text.encode()))
    plain = strip_wikitext(text)
    return Document(f"{title}\n\n{plain}" if plain else "", name, metadata={"title": title})


def _text(element: Any) -> str:
    return (element.text or "") if element is not None else ""


def strip_wikitext(text: str) -> str:
    """Return a wiki page without markup, footnotes, tables, pictures and categories."""
    import mwparserfromhell

    code = mwparserfromhell.parse(text)
    for tag in code.filter_tags(matches=lambda node: str(node.tag).strip().lower() in ("ref", "table")):
        _remove(code, tag)
    for link in code.filter_wikilinks(matches=lambda node: ":" in str(node.title).lstrip(":")):
        _remove(code, link)
    lines = [line.rstrip() for line in code.strip_code().replace("\xa0", " ").splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _remove(code: Any, node: Any) -> None:
    try:
        code.remove(node)
    except ValueError:  # it was inside of another one that is gone already
        return


# ---- books ----


def read_gutenberg(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield a book without the header and the footer that Project Gutenberg puts around it."""
    data = file.read(limit + 1)
    if len(data) > limit:
        yield Bad("too_large", unit.label, size=len(data))
        return
    found = decode(data, unit.label)
    if isinstance(found, Document):
        found.text, title = strip_book(found.text)
        found.metadata |= {"title": title} if title else {}
    yield found


# ---- code ----


def read_code(file: BinaryIO, unit: Unit, limit: int) -> Iterator[Found]:
    """Yield a source file with its language and licence: what it says itself, or the licence file above it says."""
    language = LANGUAGE_OF.get(PurePosixPath(unit.label.lower()).suffix)
    wanted = unit.source.languages
    if language is None or (wanted and language not in wanted):
        yield Bad("other_language", unit.label, language or "not known by its name", unit.size)
        return
    data = file.read(limit + 1)
    if len(data) > limit:
        yield Bad("too_large", unit.label, size=unit.size)
        return
    found = decode(data, unit.label)
    if isinstance(found, Document):
        license = license_of(found.text, unit)
        if unit.source.licenses and not is_allowed(license or "", unit.source.licenses):
            found = Bad("license", unit.label, license or "there is no licence file above it", len(data))
        else:
            # `programming_language`: `language` is what the step of that name finds.
            found.metadata = {"license": license, "programming_language": language}
    yield found
