"""Books of Project Gutenberg without what it puts around them, in the forms of fifty years.

Cut off are its header and its licence, by the marks that it sets between them and the book or by the licence's own
words, and from the first and the last paragraphs of the book the notes on who made the file and how. What the book
itself says, on Gutenberg for example, stays.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from datatrove.data import Document

from training.corpus.readers.tables import Bad
from training.corpus.readers.text import Found, to_document
from training.corpus.recipe import File

OPEN, CLOSE = 60, 40  # paragraphs at the begin and at the end among which notes on the file are looked for
LONGEST = 3000  # characters of such a note's paragraph
HEADER = 40_000  # characters in which the header ends
FLAGS = re.MULTILINE | re.IGNORECASE

START = re.compile(
    r"""^[ \t]*(?:
        \*{3}[ ]?START\ OF\ (?:THE\ |THIS\ )?(?:COPYRIGHTED\ )?PROJECT\ GUTENBERG.*  # the title may need more lines
        (?:(?<!\*{3})\n[ \t]*\S[^*\n]*){0,3}(?:\*{3})?
        | \*END[ *]*THE\ SMALL\ PRINT.*
        | Beginning\ of\ (?:the|this)\ Project\ Gutenberg.*
        )[ \t]*$""",
    FLAGS | re.VERBOSE,
)
END = re.compile(
    r"""^[ \t]*(?:
        \*{3}[ ]?END\ OF\ (?:THE\ |THIS\ )?(?:COPYRIGHTED\ )?PROJECT\ GUTENBERG
        | \*{0,3}[ ]?End\ (?:of\ )?(?:the\ |this\ )?Project\ Gutenberg
        | Ende\ diese[sr]?\ Proje[ck]t\ Gutenberg
        | Fin\ de\ Project\ Gutenberg
        | \**(?:START)?\**THE\ SMALL\ PRINT!
        | \*{3}[ ]?START:\ FULL\ LICENSE
        | THE\ FULL\ PROJECT\ GUTENBERG\ LICENSE
        | Updated\ editions\ will\ replace\ the\ previous\ one
        | \**This\ is\ a\ COPYRIGHTED\ Project\ Gutenberg
        )""",
    FLAGS | re.VERBOSE,
)
# A paragraph on the file and not of the book, if it stands at either end.
ON_THE_FILE = re.compile(
    r"""Project\s+Gutenberg | \bPG\s+(?:Online|Distributed) | www\.gutenberg\. | gutenberg\.(?:org|net) | pgdp\.net
    | Distributed\s+Proofread | ^\W*(?:This\s+)?e-?(?:text|book)\s+(?:was\s+)?(?:prepared|produced|created|scanned)\b
    | ^\W*(?:Produced|Prepared|Scanned|Transcribed|Digitized|Proofread)\s+(?:by|from)\b
    | ^\W*(?:\[\s*)?(?:Transcri(?:ber|ption)|Proofreader|E-?text\s+editor)[’']?s?[’']?\s+(?:end\s*)?notes?\b
    | ^\W*Note:\s+(?:Images\s+of\s+the\s+original|This\s+e-?(?:text|book)) | ^\W*\(?https?://\S+$
    | THIS\s+EBOOK\s+WAS\s+ONE\s+OF | HTML\s+version\s+of\s+this
    """,
    re.VERBOSE | re.IGNORECASE,
)
OF_THE_HEADER = re.compile(
    r"""^\W*(?:(?:Title|Author|Editor|Illustrator|Translator|Language|(?:Release|Posting)\s+Date|Last\s+Updated
        |Character\s+set\s+encoding|Credits)\s*:
    | Copyright\s+laws\s+are\s+changing | Please\s+take\s+a\s+look\s+at\s+the\s+important | Please\s+do\s+not\s+remove
    | We\s+encourage\s+you\s+to\s+keep | This\s+(?:header\s+)?should\s+be\s+the\s+first\s+thing
    | Welcome\s+To\s+The\s+World\s+of\s+Free | E-?(?:text|book)s\s+Readable\s+By\s+Both
    | These\s+E-?(?:text|book)s\s+(?:Were\s+)?Prepared\s+By | Information\s+on\s+contacting
    | This\s+eBook\s+is\s+for\s+the\s+use\s+of\s+anyone)
    """,
    re.VERBOSE | re.IGNORECASE,
)
NOTE = re.compile(r"^\W*Transcri(?:ber|ption)[’']?s?[’']?\s+(?:end\s*)?notes?\b", re.IGNORECASE)
AUTHOR = re.compile(r"^Author:[ \t]*(\S.*)", re.MULTILINE)
TITLE = re.compile(r"^Title:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def read_gutenberg(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield a book without the header and the footer that Project Gutenberg puts around it."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        yield Bad("too_large", file.label, size=len(data))
        return
    found = to_document(data, file.label)
    if isinstance(found, Document):
        author = AUTHOR.search(found.text, 0, HEADER)
        found.text, title = strip_book(found.text)
        found.metadata |= {"title": title, "author": author[1].strip() if author else ""} if title else {}
    yield found


def strip_book(text: str) -> tuple[str, str | None]:
    """Return a book without header, licence and notes on the file; and its title, if the header tells."""
    starts = list(START.finditer(text, 0, HEADER))
    begin = starts[-1].end() if starts else 0
    header = text[:begin]
    # The words of the end stand in old headers as well.
    end = END.search(text, max(begin, 0 if starts else min(HEADER, len(text) // 2)))
    book = text[begin : end.start() if end else None]
    title = TITLE.search(header or text[:HEADER])
    from_gutenberg = bool(starts or end) or "Project Gutenberg" in text[:HEADER]
    if from_gutenberg:
        book = _without_notes(book, with_header=not starts)
    return book.strip(), " ".join(title[1].split()) if title and from_gutenberg else None


def _without_notes(book: str, *, with_header: bool) -> str:
    """Return a book without the paragraphs at either end that are on the file."""
    parts = re.split(r"(\n(?:[ \t]*\n)+)", book.strip())  # paragraphs, and between them what parts them
    paragraphs, gaps = parts[::2], [*parts[1::2], ""]
    kept = []
    in_note = open_bracket = False
    for number, (paragraph, gap) in enumerate(zip(paragraphs, gaps, strict=True)):
        at_begin, at_end = number < OPEN, number >= max(len(paragraphs) - CLOSE, len(paragraphs) // 2)
        # A note of several paragraphs is in brackets, or indented or a list; at the end of a book nothing follows it.
        goes_on = open_bracket or (in_note and (at_end or re.match(r"[ \t]+\S|[-*•]", paragraph) is not None))
        on_the_file = ON_THE_FILE.search(paragraph) or (with_header and at_begin and OF_THE_HEADER.search(paragraph))
        if goes_on or ((at_begin or at_end) and len(paragraph) < LONGEST and on_the_file):
            in_brackets = open_bracket or paragraph.lstrip().startswith("[")
            open_bracket = in_brackets and paragraph.count("]") < max(1, paragraph.count("["))
            in_note = not in_brackets and (in_note or NOTE.match(paragraph) is not None)
        else:
            kept.append(paragraph + gap)
            in_note = open_bracket = False
    return "".join(kept)
