"""A web archive and a wiki dump, written with the libraries that others use for it."""

import io
from pathlib import Path

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

PARAGRAPH = "The old mill stands by the river, and its wheel has not turned since the flood of that long winter. " * 4


def warc(path: Path, *records: tuple[str, str, str, bytes]) -> None:
    """Write responses of (url, status, content type, body) to a compressed WARC file."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("it.warc.gz", {"software": "a test"}))
        for url, status, kind, body in records:
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))


def page(text: str, charset: str = "utf-8") -> bytes:
    html = f"<html><body><nav>menu menu</nav><article><h1>Title</h1><p>{text}</p></article></body></html>"
    return html.encode(charset)


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>W</sitename></siteinfo>
<page><title>Mill</title><ns>0</ns><revision><text>'''A mill''' grinds [[grain|corn]].&lt;ref&gt;Source&lt;/ref&gt;
{{Infobox|x=1}} [[File:Mill.jpg|thumb|A picture]] [[Category:Mills]]
== History ==
Old &amp;amp; new.</text></revision></page>
<page><title>Talk:Mill</title><ns>1</ns><revision><text>chat</text></revision></page>
<page><title>Mills</title><ns>0</ns><redirect title="Mill" /><revision><text>#REDIRECT</text></revision></page>
"""
