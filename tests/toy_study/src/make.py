"""The toy study's only program: a picture, a claim and a document, in the forms that the ledger reads."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

from levelt.marks import macros, mark_of


def figure(table: str, pdf: str, png: str, csv: str) -> None:
    """A picture of nothing, with a real mark."""
    shutil.copyfile(table, csv)
    mark = mark_of("line", csv).encode()
    Path(pdf).write_bytes(b"%PDF-1.4\n<< /Keywords (" + mark + b") >>\n%%EOF\n")
    chunks = [(b"tEXt", b"Keywords\0" + mark), (b"IDAT", b"nothing to see"), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    Path(png).write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def claims(table: str, out: str, numbers: str) -> None:
    """One claim, and the macro that quotes it."""
    estimate = float(Path(table).read_text().splitlines()[-1].split(",")[1])
    claim = {"id": "toy.c1", "statement": "it is so", "estimate": estimate, "ci_low": 0.0, "ci_high": 1.0}
    Path(out).write_text(json.dumps([{**claim, "verdict": "supported", "published": None}]))
    sentence = f"It is so: {estimate:.2f} [0.00, 1.00], \\emph{{supported}}."
    Path(numbers).write_text(f"\\leveltset{{claim.c1}}{{{sentence}}}\n\\leveltset{{verdicts.supported}}{{1}}\n")


def report(numbers: str, pdf: str, out: str) -> None:
    """A document that carries the marks a real report carries."""
    keywords = macros([Path(pdf)], Path(numbers)).split("/Levelt ")[1].split("}")[0]
    Path(out).write_bytes(b"%PDF-1.5\n<< /Levelt " + keywords.encode() + b" >>\n%%EOF\n")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
