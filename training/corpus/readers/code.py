"""Source code with its language and licence: which one a file or the licence file above it names, and what is allowed.

Names of licences are those of SPDX in small letters, without `-only` and `-or-later` where a licence's text does not
tell them.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from datatrove.data import Document
from fsspec.core import url_to_fs
from license_expression import ExpressionError, LicenseWithExceptionSymbol, Licensing

from training.corpus.readers.tables import Bad
from training.corpus.readers.text import Found, to_document
from training.corpus.recipe import LANGUAGE_OF, File

LICENSE_FILE = re.compile(
    r"(LICEN[SC]ES?|COPYING|UNLICENSE)(?![A-Z])(?!.*\.(py|js|tsx?|go|rs|rb|java|[ch]|cc|cpp|cs|html?|json)$)",
    re.IGNORECASE,
)
PLAIN_NAME = re.compile(r"(LICEN[SC]E|COPYING|UNLICENSE)(\.(TXT|MD|RST))?", re.IGNORECASE)
# Where a text begins with its title, or else words of its own, that licence is meant: others are named in it later.
GNU = r"gnu (affero|lesser|library|)\s?general public license version (\d)(\.\d)?"
WORDS = {
    "mpl": r"mozilla public license version (\d\.\d)",
    "apache": r"apache license version (\d\.\d)",
    "gfdl": r"gnu free documentation license version (\d\.\d)",
    "epl": r"eclipse public license -? ?v(?:ersion)? ?(\d\.\d)",
    "cc-by": r"creative commons attribution (\d\.\d)|attribution (4\.0) international",
    "cc-by-sa": r"creative commons attribution-sharealike (\d\.\d)|attribution-sharealike (4\.0) international",
    "artistic-2.0": r"the artistic license 2\.0",
    "artistic-1.0": r"the \"artistic license\"",
    "bsl-1.0": r"boost software license - version 1\.0",
    "psf-2.0": r"python software foundation license version 2",
    "cc0-1.0": r"cc0 1\.0 universal",
    "unlicense": r"this is free and unencumbered software released into the public domain",
    "zlib": r"this software is provided 'as-is', without any express or implied warranty",
    "mit": r"permission is hereby granted, free of charge, to any person obtaining a copy",
    "isc": r"permission to use, copy, modify,? and/?(?:or)? ?distribute this software for any purpose",
    "bsd": r"redistribution and use in source and binary forms|redistributions in binary form must reproduce the above"
    r"|neither the name of",
}
SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([(\w][\w.+() -]*[\w)+])")
EXPRESSIONS = Licensing()


def read_code(stream: BinaryIO, file: File, limit: int) -> Iterator[Found]:
    """Yield a source file with its language and licence: what it says itself, or the licence file above it says."""
    language = LANGUAGE_OF.get(PurePosixPath(file.label.lower()).suffix)
    wanted = file.source.languages
    if language is None or (wanted and language not in wanted):
        yield Bad("other_language", file.label, language or "not known by its name", file.size)
        return
    data = stream.read(limit + 1)
    if len(data) > limit:
        yield Bad("too_large", file.label, size=file.size)
        return
    found = to_document(data, file.label)
    if isinstance(found, Document):
        license = license_of(found.text, file)
        if file.source.licenses and not is_allowed(license or "", file.source.licenses):
            found = Bad("license", file.label, license or "there is no licence file above it", len(data))
        else:
            # `programming_language`: `language` is what the step of that name finds.
            found.metadata = {"license": license, "programming_language": language}
    yield found


def license_of(text: str, file: File) -> str | None:
    """Return the licence expression of a source file: what its SPDX line says, or the licence files above it."""
    own = SPDX.search(text[:2000])
    return own[1].lower() if own else license_above(file)


def license_above(file: File) -> str | None:
    """Return the licence of the nearest licence file at or above a file, within its source."""
    folder = file.path.rpartition("/")[0]
    for _ in range(file.label.count("/") + 1):
        if found := _license_in(folder):
            return found
        folder = folder.rpartition("/")[0]
    return None


@lru_cache(maxsize=4096)
def _license_in(folder: str) -> str | None:
    """Return what the licence files of a folder say together.

    `LICENSE` and `COPYING` hold for all of it. Where there are only files such as `LICENSE-MIT` and `LICENSE-APACHE`,
    one may choose.
    """
    fs, path = url_to_fs(folder)
    entries = sorted(str(entry) for entry in fs.ls(path, detail=False))
    files = [name for name in entries if LICENSE_FILE.match(name.rpartition("/")[2]) and fs.isfile(name)]
    plain = [name for name in files if PLAIN_NAME.fullmatch(name.rpartition("/")[2])]
    texts = [fs.cat_file(name, 0, 100_000).decode("utf-8", "replace") for name in plain or files]
    return (" and " if plain else " or ").join(dict.fromkeys(map(name_license, texts))) or None


def name_license(text: str) -> str:
    """Return the SPDX name, in small letters, of a licence's text; `other` if it is none of the common ones."""
    words = " ".join(re.sub(r"[*#=_]{2,}|[“”]", " ", text).split()).lower().replace(", version", " version")
    found = [(match.start(), name, match) for name, pattern in WORDS.items() if (match := re.search(pattern, words))]
    if gnu := re.search(GNU, words):
        found.append((gnu.start(), "gnu", gnu))
    if not found:
        return "other"
    _, name, match = min(found, key=lambda entry: entry[0])
    match name:
        case "gnu":
            kind = {"affero": "agpl", "lesser": "lgpl", "library": "lgpl"}.get(match[1], "gpl")
            return f"{kind}-{match[2]}{match[3] or '.0'}"
        case "bsd":
            if "all advertising materials mentioning" in words:
                return "bsd-4-clause"
            if re.search(r"neither the names? of|may not be used to endorse", words):
                return "bsd-3-clause"
            return "bsd-2-clause" if "redistributions in binary form" in words else "other"
        case "isc":
            return "isc" if "provided that the above" in words else "0bsd"
        case _:
            version = next((part for part in match.groups() if part), None)
            return f"{name}-{version}" if version else name


def is_allowed(expression: str, allowed: tuple[str, ...]) -> bool:
    """Whether an SPDX expression leaves a way to use a file under licences that are all allowed.

    `or` gives a choice and `and` does not; an exception that `with` adds takes no right away, and `-or-later` includes
    the version that it names.
    """
    names = {name.lower() for name in allowed}
    try:
        tree = EXPRESSIONS.parse(expression.lower())
    except ExpressionError:  # no expression; yet it may be allowed as it stands
        tree = None
    return expression.lower() in names or (tree is not None and _holds(tree, names))


def _holds(node: Any, names: set[str]) -> bool:
    if isinstance(node, EXPRESSIONS.AND | EXPRESSIONS.OR):
        parts = [_holds(part, names) for part in node.args]
        return all(parts) if isinstance(node, EXPRESSIONS.AND) else any(parts)
    if isinstance(node, LicenseWithExceptionSymbol):
        return str(node) in names or _holds(node.license_symbol, names)
    base = re.sub(r"(-only|-or-later|\+)$", "", node.key)
    return not names.isdisjoint((node.key, base, f"{base}-only"))
