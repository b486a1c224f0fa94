"""A figure's mark depends on its numbers and on nothing else, and is found again in PDF, PNG and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from levelt.marks import code_of, macros, mark_of, marks_in, pdf_metadata, png_metadata


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "lens_head.csv"
    path.write_text("layer,value\n0,0.5\n")
    return path


def test_the_mark_is_the_numbers(numbers: Path, tmp_path: Path) -> None:
    mark = mark_of("lens_head", numbers)
    copy = tmp_path / "elsewhere" / "copy.csv"
    copy.parent.mkdir()
    copy.write_bytes(numbers.read_bytes())
    assert mark_of("lens_head", copy) == mark and mark.startswith("levelt:lens_head:") and len(code_of(mark)) == 10
    copy.write_text(copy.read_text().replace("0.5", "0.6"))
    assert mark_of("lens_head", copy) != mark
    assert code_of(mark_of("other", numbers)) != code_of(mark), "two figures never share a code"


def test_pictures_carry_it(numbers: Path, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    mark = mark_of("lens_head", numbers)
    figure, _ = plt.subplots(figsize=(1, 1))
    figure.savefig(tmp_path / "lens_head.pdf", metadata=pdf_metadata(mark))
    figure.savefig(tmp_path / "lens_head.png", metadata=png_metadata(mark))
    figure.savefig(tmp_path / "plain.png")
    plt.close(figure)
    assert marks_in(tmp_path / "lens_head.pdf") == marks_in(tmp_path / "lens_head.png") == {"lens_head": mark}
    assert marks_in(tmp_path / "plain.png") == {}
    text = macros([tmp_path / "lens_head.pdf"], numbers)
    assert f"\\leveltset{{code.lens_head}}{{{code_of(mark)}}}" in text
    assert mark in text and mark_of("numbers", numbers) in text
    (tmp_path / "renamed.pdf").write_bytes((tmp_path / "lens_head.pdf").read_bytes())
    assert "code.renamed" not in macros([tmp_path / "renamed.pdf"], numbers), "another figure's code is not taken over"


def test_every_figure_of_the_report_is_marked(root: Path) -> None:
    text = (root / "paper/report.tex").read_text(encoding="utf-8")
    assert text.count("\\includegraphics") == 1, "figures are included through \\leveltfigure{name}"
