"""Draw one figure from its tables."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from levelt import figures
from levelt.files import InputError, replacing, write_csv
from levelt.marks import mark_of, pdf_metadata, png_metadata

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt figure`."""
    parser.add_argument("name", help="module of levelt.figures")
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="tables it is drawn from (.csv)")
    parser.add_argument("--pdf", type=Path, required=True)
    parser.add_argument("--png", type=Path, required=True)
    parser.add_argument("--csv", type=Path, required=True, help="exactly the numbers drawn")


def run(arguments: argparse.Namespace) -> None:
    """Read tables, draw, write PDF, PNG and the table drawn."""
    from levelt.figures.style import use_style

    known = [module.name for module in pkgutil.iter_modules(figures.__path__) if module.name != "style"]
    if arguments.name not in known:
        raise InputError(f"there is no figure {arguments.name}; known figures: {', '.join(known)}")
    use_style()
    figure, drawn = importlib.import_module(f"levelt.figures.{arguments.name}").draw(_read(arguments.tables))
    write_csv(arguments.csv, drawn)
    # the mark leads from a picture back to its numbers; no dates, no versions: the same table gives the same bytes
    mark = mark_of(arguments.name, arguments.csv)
    with replacing(arguments.pdf) as path:
        figure.savefig(path, format="pdf", metadata=pdf_metadata(mark))
    with replacing(arguments.png) as path:
        _save_png(figure, path, mark)


def _save_png(figure: Figure, path: Path, mark: str) -> None:
    """A PNG of 256 colours: a third of the bytes of true colour, and no eye sees it in a plot."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    drawing = BytesIO()
    figure.savefig(drawing, format="png", dpi=200)
    texts = PngInfo()
    for key, text in png_metadata(mark).items():
        texts.add_text(key, text)
    Image.open(drawing).convert("RGB").quantize(256).save(path, format="png", optimize=True, pnginfo=texts)


def _read(paths: list[Path]) -> dict[str, pd.DataFrame]:
    """Tables by name; a table that every model has (training.csv) is named by its model."""
    names = [path.stem for path in paths]
    return {
        (path.parent.name if names.count(path.stem) > 1 or path.stem == "training" else path.stem): pd.read_csv(path)
        for path in paths
    }
