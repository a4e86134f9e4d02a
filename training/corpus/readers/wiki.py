"""Dumps of MediaWiki: each article as plain text, the markup taken out by mwparserfromhell."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from datatrove.data import Document

from training.corpus.readers.tables import Bad
from training.corpus.readers.text import Found
from training.corpus.recipe import File


def read_mediawiki(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield each article of a MediaWiki XML dump as plain text under its title; redirects and talk are named."""
    from xml.etree import ElementTree

    root = None
    for event, element in ElementTree.iterparse(stream, events=("start", "end")):
        root = element if root is None else root
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            yield _read_page(element, file, limit)
            root.clear()  # else the whole dump would stay in memory


def _read_page(element: Any, file: File, limit: int) -> Found:
    found = {child.tag.rpartition("}")[2]: child for child in element.iter()}
    title, space = _text(found.get("title")), _text(found.get("ns"))
    name = f"{file.label}/{title}"
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
