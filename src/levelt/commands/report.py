"""Typeset the report."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from levelt.files import write_text
from levelt.marks import macros
from levelt.typesetting import build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt report`."""
    parser.add_argument("--source", type=Path, required=True, help="the .tex file")
    parser.add_argument("--parts", type=Path, nargs="*", default=[], help="the .tex files it inputs")
    parser.add_argument("--bibliography", type=Path, required=True, help="the .bib file")
    parser.add_argument("--numbers", type=Path, required=True, help="generated macros (.tex)")
    parser.add_argument("--figures", type=Path, nargs="+", required=True, help="figures (.pdf)")
    parser.add_argument("--out", type=Path, required=True, help="where to write the PDF")


def run(arguments: argparse.Namespace) -> None:
    """Build in a scratch folder, then rename into place."""
    inputs = {"references.bib": arguments.bibliography, "numbers.tex": arguments.numbers}
    inputs |= {path.name: path for path in (*arguments.parts, *arguments.figures)}
    with tempfile.TemporaryDirectory(prefix="levelt-marks-") as scratch:
        inputs["provenance.tex"] = Path(scratch) / "provenance.tex"
        write_text(inputs["provenance.tex"], macros(arguments.figures, arguments.numbers))
        build(arguments.source, inputs, arguments.out)
