"""The provenance site as a reader has it: opened in a browser, every link followed, and reached from the PDF."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from levelt.ledger.numbers import generated
from levelt.studies.report import render
from levelt.typesetting import build, missing_programs
from toy import Toy, make_toy

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]


class Page(HTMLParser):
    """Links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [link for link in (values.get("href"), values.get("src")) if link]
        self.anchors |= {anchor for anchor in (values.get("id"),) if anchor}


def broken(index: Path, read: dict[Path, str]) -> list[str]:
    """Links that lead nowhere, following every local page from ``index``; ``read`` collects the pages' texts."""
    wrong, queue, pages = [], [index], {}
    while queue:
        path = queue.pop()
        if path in pages:
            continue
        read[path] = path.read_text(encoding="utf-8")
        pages[path] = Page(read[path])
        queue += [
            target
            for link in pages[path].links
            if (target := (path.parent / link.partition("#")[0]).resolve()).suffix == ".html" and target.is_file()
        ]
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if "://" in link:
                continue
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                wrong.append(f"{path.name}: {link}")
    return wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the toy study's site."""
    toy: Toy = make_toy(tmp_path_factory.mktemp("site"))
    index = toy.path / toy.ledger("site").stdout.strip()
    return index.resolve()


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    read: dict[Path, str] = {}
    assert broken(site, read) == []
    assert {path.name for path in read} == {path.name for path in site.parent.glob("*.html")}, "every page is reached"
    assert {"index.html", "all-claims.html", "all-numbers.html", "line.html"} <= {path.name for path in read}
    claims = site.with_name("all-claims.html").read_text(encoding="utf-8")
    assert 'id="claim.c1"' in claims and 'id="claim.toy.c1"' in claims and "it is so" in claims and "<svg" in claims
    numbers = site.with_name("all-numbers.html").read_text(encoding="utf-8")
    assert 'id="verdicts.supported"' in numbers and 'href="all-claims.html#claim.c1"' in numbers
    line = site.with_name("line.html")
    text = line.read_text(encoding="utf-8")
    line.write_text(text.replace("index.html", "index2.html").replace('href="#tables"', 'href="#tablez"'))
    assert broken(site, {}) == ["line.html: index2.html", "line.html: #tablez"], "twin: a broken link is named"
    line.write_text(text)


def test_a_browser_shows_it(site: Path, tmp_path: Path) -> None:
    """Headless Chromium opens every page that is reached from the index, and draws it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}): `apt-get install chromium`")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    pages: dict[Path, str] = {}
    broken(site, pages)
    for path, text in pages.items():
        shown = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True).stdout
        assert Page(shown).links == Page(text).links, f"{path.name}: the browser reads other links"
        assert re.search(r"<title>(.*?)</title>", shown) is not None
    picture = tmp_path / "index.png"
    subprocess.run([*command, f"--screenshot={picture}", site.as_uri()], capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_generated_numbers_are_read_back(tmp_path: Path) -> None:
    values = {"seed": "1", "claim.c1": r"It is so: 0.5, \emph{supported}.", "table.a": "\\begin{tabular}{l}\na \\\\\n}"}
    (tmp_path / "numbers.tex").write_text(render(values), encoding="utf-8")
    assert generated(tmp_path / "numbers.tex") == values


@pytest.mark.skipif(bool(missing_programs()), reason="LaTeX is not installed")
def test_numbers_in_the_pdf_lead_to_their_rows(root: Path, tmp_path: Path) -> None:
    """The report's own preamble: a number, a claim and a table are links; captions and boxes may hold them."""
    preamble = (root / "paper/report.tex").read_text(encoding="utf-8").partition(r"\title{")[0]
    body = r"""\begin{document}
\levelt{a.b_c} \levelt{claim.c1}
\begin{table}\caption{Level \levelt{level}\,\%.}\resizebox{\textwidth}{!}{\levelt{table.a}}\end{table}
\end{document}
"""
    (tmp_path / "r.tex").write_text(preamble + body, encoding="utf-8")
    values = {"study": "s", "a.b_c": "0.5", "claim.c1": r"So: 0.5, \emph{supported}.", "level": "95"}
    values["table.a"] = "\\begin{tabular}{ll}\na & $10^{-3}$ \\\\\n\\end{tabular}"
    (tmp_path / "numbers.tex").write_text(render(values), encoding="utf-8")
    build(tmp_path / "r.tex", {"numbers.tex": tmp_path / "numbers.tex"}, tmp_path / "r.pdf")
    data = (tmp_path / "r.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL)
    text = b"".join([data, *map(_inflated, streams)]).decode("latin-1")
    links = sorted(set(re.findall(r"/URI ?\((.*?)\)", text)))
    to = "../../docs/provenance/s"
    rows = ["all-claims.html#claim.c1", *(f"all-numbers.html#{key}" for key in ("a.b_c", "level", "table.a"))]
    assert links == [f"{to}/{row}" for row in rows]
    (tmp_path / "numbers.tex").write_text(render({"study": "s"}), encoding="utf-8")
    with pytest.raises(Exception, match=r"a\.b_c"):
        build(tmp_path / "r.tex", {"numbers.tex": tmp_path / "numbers.tex"}, tmp_path / "r.pdf")


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(stream)
    except zlib.error:
        return b""
