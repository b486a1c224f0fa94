"""The provenance site: a page per figure, one of claims, one of numbers, each with its chain; made of plain files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from levelt.files import read_json, replacing, write_text
from levelt.ledger.book import Book, git, hashes
from levelt.ledger.graphic import chain_svg
from levelt.ledger.numbers import generated
from levelt.ledger.trace import trace

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
img { max-width: 100%; border: 1px solid #ddd } svg text { font-size: 14px }
svg text.small { font-size: 11px; fill: #555 }
code, pre, td.hash { font: 12px/1.45 ui-monospace, monospace } pre { white-space: pre-wrap; overflow-wrap: anywhere;
background: #f6f6f6; padding: .6rem } table { border-collapse: collapse } td, th { text-align: left; padding: .15rem
.8rem .15rem 0; vertical-align: top; border-bottom: 1px solid #eee }
svg { max-width: 100%; height: auto }
.scroll { overflow-x: auto } .changed, .contradicted { color: #b00 } .absent, .undecided { color: #777 }
.supported { color: #070 } tr:target { background: #fff3bf } td > pre { margin: 0; max-height: 9rem; overflow: auto }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
.card { border: 1px solid #ddd; padding: .5rem; text-decoration: none; overflow-wrap: anywhere }
.card code { color: #777 }
.card img { width: 100%; height: 9rem; object-fit: contain; border: 0 }
"""


def write_site(book: Book, out: Path) -> Path:
    """Write index.html, a page per figure, all-claims.html and all-numbers.html into ``out``; returns
    the index. (A figure is named by a module, so none has a hyphen in its name.)

    Pictures are copied, so that the folder can be moved or zipped; links to code go to the recorded commit where the
    repository has a web address, and to the working tree otherwise.
    """
    out.mkdir(parents=True, exist_ok=True)
    here = hashes(book.files)
    for figure in book.figures:
        tree = trace(book, figure, here)
        picture = Path(tree["artifact"]["path"]).with_suffix(".png")
        if picture.is_file():
            with replacing(out / picture.name) as temporary:
                shutil.copyfile(picture, temporary)
        write_text(out / f"{figure}.html", _page(figure, _figure(tree, picture, out)))
        write_text(out / f"{figure}.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    for name, title, table in (("claims", "Claims", _claims), ("numbers", "Numbers of the report", _numbers)):
        path = _made(book, f"{name}.{'json' if name == 'claims' else 'tex'}")
        if path is not None and Path(path).is_file():
            tree = trace(book, path, here)
            write_text(out / f"all-{name}.html", _page(title, table(path, tree, out) + _chain(tree, out)))
    write_text(out / "index.html", _page(f"Provenance of study {book.study}", _index(book, out)))
    return out / "index.html"


def _made(book: Book, name: str) -> str | None:
    """The path of the study's one output of that name."""
    return next((path for path in book.maker if Path(path).name == name), None)


def _index(book: Book, out: Path) -> str:
    shown = []
    for name, mark in book.figures.items():
        picture = f'<img src="{name}.png" alt="">' if (out / f"{name}.png").is_file() else ""
        shown.append(f'<a class="card" href="{name}.html">{picture}{escape(name)}<br><code>{escape(mark)}</code></a>')
    documents = [p for p in book.maker if p.endswith(".pdf") and Path(p).stem not in book.figures]
    links = [f'<li><a href="{_to(path, out)}">{escape(path)}</a></li>' for path in documents]
    links += [
        f'<li><a href="all-{name}.html">{said}</a></li>'
        for name, said in (("claims", "the claims and what they rest on"), ("numbers", "every number of the report"))
        if (out / f"all-{name}.html").is_file()
    ]
    return (
        f"<p>{len(book.jobs)} jobs, {len(book.files)} files, recorded at commit {_commit(book.revision)}.</p>"
        f'<ul>{"".join(links)}</ul><h2>Figures</h2><div class="cards">{"".join(shown)}</div>'
    )


def _claims(path: str, tree: Mapping[str, Any], out: Path) -> str:
    """A row per claim. The report links to ``#claim.<id>``, with or without the study's prefix in the id."""
    tables = {Path(file["path"]).stem: file["path"] for file in tree["jobs"][0]["inputs"]}
    rows = []
    for claim in read_json(path):
        table = tables.get(str(claim.get("table")))
        cells = [
            f'<code>{escape(claim["id"])}</code><a id="claim.{escape(claim["id"].partition(".")[2])}"></a>',
            escape(str(claim.get("statement") or "")),
            escape(str(claim.get("test") or "")),
            *(_shown(claim.get(key)) for key in ("estimate", "ci_low", "ci_high", "published")),
            f'<span class="{claim["verdict"]}">{escape(claim["verdict"])}</span>',
            f'<a href="{_to(table, out)}">{Path(table).name}</a>' if table else "",
        ]
        rows.append(f'<tr id="claim.{escape(claim["id"])}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    names = ["id", "claim", "test", "estimate", "from", "to", "published", "verdict", "table"]
    head = "".join(f"<th>{name}</th>" for name in names)
    source = f'<a href="{_to(path, out)}">{escape(path)}</a>'
    return f'<p>From {source}.</p><div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _numbers(path: str, tree: Mapping[str, Any], out: Path) -> str:
    """A row per generated number, in the report's own LaTeX; a claim's sentence leads on to the claim."""
    rows = []
    for key, value in generated(Path(path)).items():
        name = f"<code>{escape(key)}</code>"
        if key.startswith("claim."):
            name = f'<a href="all-claims.html#{escape(key)}">{name}</a>'
        text = f"<pre>{escape(value)}</pre>" if "\n" in value else escape(value)
        rows.append(f'<tr id="{escape(key)}"><td>{name}</td><td>{text}</td></tr>')
    source = f'<a href="{_to(path, out)}">{escape(path)}</a>'
    tables = ", ".join(
        f'<a href="{_to(file["path"], out)}">{Path(file["path"]).name}</a>'
        for file in tree["jobs"][0]["inputs"]
        if file["path"].endswith(".csv")
    )
    said = f"<p>Every number and table of the report is made by one job from {tables or 'the claims'}: {source}.</p>"
    return f"{said}<table><tr><th>key</th><th>LaTeX</th></tr>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _figure(tree: Mapping[str, Any], picture: Path, out: Path) -> str:
    maker = tree["jobs"][0]
    parts = [
        f"<p><code>{escape(tree['mark'] or '')}</code>: the numbers drawn, wherever this picture goes.</p>",
        f'<img src="{picture.name}" alt="{picture.stem}">'
        if picture.is_file()
        else "<p>The picture was not pulled.</p>",
        "<p>Drawn from "
        + ", ".join(f'<a href="{_to(file["path"], out)}">{escape(file["path"])}</a>' for file in maker["inputs"])
        + f'. <a href="{picture.stem}.json">All of this as JSON</a>.</p>',
    ]
    return "\n".join(parts) + _chain(tree, out)


def _chain(tree: Mapping[str, Any], out: Path) -> str:
    edited = f"; edited since that commit: {escape(', '.join(tree['edited']))}" if tree["edited"] else ""
    parts = [
        f"<h2>The chain</h2><p>Recorded at commit {_commit(tree['revision'])}{edited}.</p>",
        f'<div class="scroll">{chain_svg(tree["jobs"])}</div>',
    ]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job in tree["jobs"]:
        groups.setdefault(job["rule"], []).append(job)
    for rule, jobs in groups.items():
        parts.append(f'<h3 id="{escape(rule)}">{escape(rule)}</h3>')
        parts += [_job(job, tree["revision"], out) for job in jobs]
    settings = "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
        for key, value in sorted(tree["settings"].items())
    )
    parts.append(f"<h2>Settings</h2><table>{settings}</table>")
    for room, files in tree["data"].items():
        parts.append(f"<details><summary>{escape(room)}: {len(files)} files</summary>{_files(files, out)}</details>")
    parts.append("<h2>Raw files</h2>")
    parts.append(_files(tree["raw"], out) if tree["raw"] else "<p>None: everything is made from code and settings.</p>")
    parts.append(f"<h2>Code</h2>{_files(tree['code'], out, tree['revision'])}<h2>Environments</h2>")
    parts += [
        f'<h3 id="{name}">{name}</h3><pre>{escape(json.dumps(machine, indent=1))}</pre>'
        for name, machine in tree["environments"].items()
    ]
    return "\n".join(parts)


def _job(job: Mapping[str, Any], revision: str | None, out: Path) -> str:
    first, *more = (file["path"] for file in job["outputs"])
    made = "/".join(Path(first).parts[2:]) + (f" and {len(more)} more" if more else "")
    said = f"{job['started']}, {job['seconds']} s, {job['threads']} threads, {job['where']}"
    log = f'<a href="{_to(job["log"], out)}">log</a>' if Path(job["log"]).is_file() else "log not here"
    machine = f'environment <a href="#{job["environment"]}">{job["environment"]}</a>'
    return (
        f"<details><summary>{escape(made)}: {said}, {machine}, {log}</summary>"
        f"<pre>{escape(job['command'])}</pre>{_files([*job['inputs'], *job['outputs']], out)}</details>"
    )


def _files(files: Iterable[Mapping[str, Any]], out: Path, revision: str | None = None) -> str:
    rows = []
    address = _address() if revision else None
    for file in files:
        path = file["path"]
        link = f"{address}/blob/{revision}/{path}" if address else _to(path, out) if Path(path).is_file() else None
        name = f'<a href="{link}">{escape(file["path"])}</a>' if link else escape(file["path"])
        more = f"<td>{escape(file['origin'])}</td><td>{escape(file['licence'])}</td>" if "origin" in file else ""
        rows.append(
            f'<tr><td>{name}</td><td class="hash">{(file["sha256"] or "")[:16]}</td>'
            f'<td class="{file["here"]}">{file["here"]}</td>{more}</tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def _commit(revision: str | None) -> str:
    if revision is None:
        return "unknown (no git repository)"
    address = _address()
    short = f"<code>{revision[:10]}</code>"
    return f'<a href="{address}/commit/{revision}">{short}</a>' if address else short


def _address() -> str | None:
    """The repository's address on the web, from git's remote ``origin``."""
    found = re.match(
        r"(?:https?://(?:[^@/]*@)?|git@)([\w.-]+)[:/](.+?)(?:\.git)?/?$", git("remote", "get-url", "origin") or ""
    )
    return f"https://{found.group(1)}/{found.group(2)}" if found else None


def _to(path: str, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    top = f'<nav><a href="index.html">study</a></nav><h1>{escape(title)}</h1>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{top}\n{body}\n</body></html>\n'
