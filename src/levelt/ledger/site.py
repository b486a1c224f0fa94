"""The provenance site: a page per figure with its picture, its chain and every link, made of plain files."""

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
from levelt.ledger.trace import trace

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
img { max-width: 100%; border: 1px solid #ddd } svg text { font-size: 14px }
svg text.small { font-size: 11px; fill: #555 }
code, pre, td.hash { font: 12px/1.45 ui-monospace, monospace } pre { white-space: pre-wrap; overflow-wrap: anywhere;
background: #f6f6f6; padding: .6rem } table { border-collapse: collapse } td, th { text-align: left; padding: .15rem
.8rem .15rem 0; vertical-align: top; border-bottom: 1px solid #eee }
.scroll { overflow-x: auto } .changed { color: #b00 } .absent { color: #888 }
"""


def write_site(book: Book, out: Path) -> Path:
    """Write index.html and a page per figure into ``out``; returns the index.

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
    write_text(out / "index.html", _page(f"Provenance of study {book.study}", _index(book, out)))
    return out / "index.html"


def _index(book: Book, out: Path) -> str:
    rows = [
        f'<tr><td><a href="{name}.html">{escape(name)}</a></td><td class="hash">{escape(mark)}</td></tr>'
        for name, mark in book.figures.items()
    ]
    documents = [p for p in book.maker if p.endswith(".pdf") and Path(p).stem not in book.figures]
    links = [f'<li><a href="{_to(path, out)}">{escape(path)}</a></li>' for path in documents]
    parts = [
        f"<p>{len(book.jobs)} jobs, {len(book.files)} files, recorded at commit {_commit(book.revision)}.</p>",
        f"<ul>{''.join(links)}</ul><h2>Figures</h2><table>{''.join(rows)}</table>",
    ]
    for path in (path for path in book.maker if Path(path).name == "claims.json"):
        if Path(path).is_file():
            parts.append(_claims(read_json(path), path, out))
    return "\n".join(parts)


def _claims(claims: Any, path: str, out: Path) -> str:
    rows = []
    for claim in claims if isinstance(claims, list) else claims.get("claims", []):
        interval = f"[{claim.get('ci_low')}, {claim.get('ci_high')}]"
        cells = [claim["id"], claim.get("statement"), claim.get("estimate"), interval, claim.get("verdict")]
        cells.append(claim.get("published"))
        inner = "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in cells)
        rows.append(f'<tr id="{escape(str(claim["id"]))}">{inner}</tr>')
    head = "<tr><th>id</th><th>claim</th><th>estimate</th><th>interval</th><th>verdict</th><th>published</th></tr>"
    source = f'<a href="{_to(path, out)}">{escape(path)}</a>'
    return f'<h2 id="claims">Claims</h2><p>From {source}.</p><table>{head}{"".join(rows)}</table>'


def _figure(tree: Mapping[str, Any], picture: Path, out: Path) -> str:
    maker = tree["jobs"][0]
    edited = f"; edited since that commit: {escape(', '.join(tree['edited']))}" if tree["edited"] else ""
    parts = [
        '<p><a href="index.html">all figures</a></p>',
        f"<p><code>{escape(tree['mark'] or '')}</code>: the numbers drawn, wherever this picture goes.</p>",
        f'<img src="{picture.name}" alt="{picture.stem}">'
        if picture.is_file()
        else "<p>The picture was not pulled.</p>",
        f"<p>Recorded at commit {_commit(tree['revision'])}{edited}. Drawn from "
        + ", ".join(f'<a href="{_to(file["path"], out)}">{escape(file["path"])}</a>' for file in maker["inputs"])
        + f'. <a href="{picture.stem}.json">All of this as JSON</a>.</p>',
        f'<h2>The chain</h2><div class="scroll">{chain_svg(tree["jobs"])}</div>',
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
    made = ", ".join(Path(file["path"]).name for file in job["outputs"][:3])
    said = f"{job['started']}, {job['seconds']} s, {job['threads']} threads, {job['where']}"
    log = f'<a href="{_to(job["log"], out)}">log</a>' if Path(job["log"]).is_file() else "log not here"
    machine = f'environment <a href="#{job["environment"]}">{job["environment"]}</a>'
    return (
        f"<details><summary>{escape(made)}: {said}, {machine}, {log}</summary>"
        f"<pre>{escape(job['command'])}</pre>{_files([*job['inputs'], *job['outputs']], out)}</details>"
    )


def _files(files: Iterable[Mapping[str, Any]], out: Path, revision: str | None = None) -> str:
    rows = []
    for file in files:
        link = _source(file["path"], revision) or (_to(file["path"], out) if Path(file["path"]).is_file() else None)
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


def _source(path: str, revision: str | None) -> str | None:
    address = _address()
    return f"{address}/blob/{revision}/{path}" if address and revision else None


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
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'
    )
