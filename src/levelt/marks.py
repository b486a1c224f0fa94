"""The mark of a figure: a short code made from the numbers drawn, written into the PDF and PNG, and read back.

``levelt:blocking:3f9a1c2b7d`` says which figure this is and which numbers it shows. It depends on nothing else (no
time, no commit, no machine), so the same numbers always carry the same mark, and a picture that left the repository
still leads back to its data: `levelt ledger trace 3f9a1c2b7d`.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

DIGITS = 10
"""Hexadecimal digits of a code: 40 bits, enough for all figures anyone will print."""
_MARK = re.compile(rf"levelt:([\w.-]+):([0-9a-f]{{{DIGITS}}})")
_PDF_TEXT = re.compile(rb"/(?:Keywords|Levelt) ?\((.*?)\)", re.DOTALL)
_PNG = b"\x89PNG\r\n\x1a\n"


def mark_of(name: str, numbers: str | Path) -> str:
    """The mark of figure ``name`` whose numbers are the file ``numbers`` (the CSV beside the picture)."""
    digest = hashlib.sha256(name.encode() + b"\n" + Path(numbers).read_bytes()).hexdigest()
    return f"levelt:{name}:{digest[:DIGITS]}"


def code_of(mark: str) -> str:
    """The short code of a mark: what is printed under the figure."""
    return mark.rsplit(":", 1)[-1]


def pdf_metadata(mark: str) -> Mapping[str, str | None]:
    """matplotlib's ``metadata`` for a PDF: the mark, and none of the dates and versions it would write by itself."""
    return {"Keywords": mark, "CreationDate": None, "Producer": None, "Creator": None}


def png_metadata(mark: str) -> Mapping[str, str]:
    """The text chunks of a PNG: the mark, and neither dates nor versions."""
    return {"Keywords": mark}


def marks_in(picture: str | Path) -> dict[str, str]:
    """Name -> mark for every mark in a PDF's or PNG's own metadata; empty where there is none.

    Only what matplotlib and pdfLaTeX write is understood (plain text), which is all that levelt makes.
    """
    data = Path(picture).read_bytes()
    parts = _png_texts(data) if data.startswith(_PNG) else _PDF_TEXT.findall(data)
    text = " ".join(part.decode("latin-1") for part in parts)
    return {match.group(1): match.group(0) for match in _MARK.finditer(text)}


def macros(figures: Iterable[Path], numbers: Path) -> str:
    """LaTeX for the report: the code of each figure, and all marks in the document's own metadata.

    The figures' marks come from the figures themselves, so the PDF cannot carry another picture's code; the numbers the
    report quotes are marked by their own file.
    """
    marks = {name: mark for path in figures for name, mark in marks_in(path).items() if name == path.stem}
    lines = [f"\\leveltset{{code.{name}}}{{{code_of(mark)}}}" for name, mark in marks.items()]
    keywords = " ".join([*marks.values(), mark_of("numbers", numbers)])
    # a key of our own: hyperref owns Keywords, and would write it as UTF-16
    return "\n".join([*lines, f"\\pdfinfo{{/Levelt ({keywords})}}"]) + "\n"


def _png_texts(data: bytes) -> Iterator[bytes]:
    """The text chunks of a PNG."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"tEXt":
            yield data[position + 8 : position + 8 + length]
        position += length + 12
