"""Trace an artifact to all it rests on: jobs, commands, code, settings, seeds, data, machines, down to raw files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from levelt.files import InputError
from levelt.ledger.book import CODE, Book, Entry, git, hashes
from levelt.ledger.stages import folder_of
from levelt.marks import code_of

_SLACK = 60.0
"""Seconds by which a log's file time may differ from the end of its job."""


def resolve(book: Book, target: str) -> str:
    """The path of the artifact that ``target`` names: a path, a figure's name, its code, or its mark.

    Raises:
        InputError: nothing of this study is named so.
    """
    by_code = {code_of(mark): name for name, mark in book.figures.items()}
    name = by_code.get(code_of(target), target)
    if re.fullmatch(r"[0-9a-f]{10}", code_of(target)) and name == target:
        raise InputError(f"no figure of study {book.study} has the code {code_of(target)}: it shows other numbers")
    if name in book.figures:
        return next(path for path in book.maker if Path(path).stem == name and path.endswith(".pdf"))
    path = str(Path(target)) if not Path(target).is_absolute() else _relative(target)
    if path in book.maker:
        return path
    known = ", ".join(book.figures) or "none"
    raise InputError(f"{target}: no artifact of study {book.study}; expected a path, a code or a figure ({known})")


def chain(book: Book, path: str) -> list[Entry]:
    """The jobs an artifact rests on: the one that made it first, every job before those it needs."""
    maker = book.maker
    order: dict[str, Entry] = {}

    def visit(entry: Entry) -> None:
        if entry.outputs[0] in order:
            return
        for source in sorted({maker[p].outputs[0] for p in entry.inputs if p in maker}):
            visit(maker[source])
        order[entry.outputs[0]] = entry

    visit(maker[path])
    return list(reversed(order.values()))


def trace(book: Book, target: str, here: Mapping[str, tuple[str, int]] | None = None) -> dict[str, Any]:
    """Everything known about an artifact, as a JSON tree.

    Args:
        book: the study's book.
        target: see `resolve`.
        here: hashes of the files on disk, where they are known already.

    Keys: artifact, mark, study, config, revision, edited, jobs (the maker first), code, settings, seeds, data (by
    room), raw, environments. Every file has its SHA-256 and ``here``: same, changed or absent.
    """
    path = resolve(book, target)
    jobs = chain(book, path)
    maker = book.maker
    code = sorted({file for entry in jobs for file in book.code[entry.code]})
    inputs = {file for entry in jobs for file in entry.inputs}
    if here is None:
        here = hashes({path, *code, *inputs, *(file for entry in jobs for file in entry.outputs)})
    rooms: dict[str, list[str]] = {}
    for file in sorted(inputs & set(maker)):
        rooms.setdefault(Path(folder_of(file)).name, []).append(file)
    return {
        "artifact": _file(book, path, here),
        "mark": book.figures.get(Path(path).stem) if Path(path).stem in book.figures else None,
        "study": book.study,
        "config": book.config,
        "revision": book.revision,
        "edited": list(book.edited),
        "jobs": [_job(book, entry, here) for entry in jobs],
        "code": [_file(book, file, here) for file in code],
        "settings": {key: value for entry in jobs for key, value in sorted(entry.settings.items())},
        "seeds": sorted({entry.settings["seed"] for entry in jobs if "seed" in entry.settings}),
        "data": {room: [_file(book, file, here) for file in files] for room, files in rooms.items()},
        "raw": [{**_file(book, file, here), **origin(file)} for file in sorted(inputs - set(maker))],
        "environments": {name: book.environments[name] for name in sorted({entry.environment for entry in jobs})},
    }


def origin(path: str) -> dict[str, str]:
    """Where a raw file comes from, and its licence.

    `dvc import-url` and `dvc import` leave a .dvc file beside what they fetch, with the address, the revision and
    (under ``meta``, written by hand) the licence. A file in git comes from this repository. Else: not stated.
    """
    note = Path(f"{path}.dvc")
    if note.is_file():
        tree = yaml.safe_load(note.read_text(encoding="utf-8"))
        source = (tree.get("deps") or [{}])[0]
        repository = source.get("repo", {})
        parts = [repository.get("url"), source.get("path"), repository.get("rev_lock") or source.get("etag")]
        said = " ".join(str(part) for part in parts if part)
        return {"origin": said or "not stated", "licence": str(tree.get("meta", {}).get("licence", "not stated"))}
    commit = git("log", "-1", "--format=%H", "--", path)
    if commit:
        return {"origin": f"this repository, commit {commit[:10]}", "licence": "that of this repository"}
    return {"origin": "not stated", "licence": "not stated"}


def where_run(entry: Entry) -> str:
    """computed here, pulled or absent: logs are never pulled, so a job's log is where the job ran."""
    if not any(Path(path).exists() for path in entry.outputs):
        return "absent"
    log = Path(entry.log)
    if entry.log and log.is_file():
        ended = datetime.fromisoformat(entry.started).timestamp() + entry.seconds
        if abs(log.stat().st_mtime - ended) <= _SLACK + entry.seconds:
            return "computed here"
    return "pulled"


def _job(book: Book, entry: Entry, here: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    return {
        "rule": entry.rule,
        "command": entry.command,
        "settings": entry.settings,
        "inputs": [_file(book, file, here) for file in entry.inputs],
        "outputs": [_file(book, file, here) for file in entry.outputs],
        "code": list(book.code[entry.code]),
        "log": entry.log,
        "threads": entry.threads,
        "started": entry.started,
        "seconds": entry.seconds,
        "environment": entry.environment,
        "where": where_run(entry),
    }


def _file(book: Book, path: str, here: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    digest, size = book.files.get(path, (None, None))
    state = "absent" if path not in here else "same" if here[path] == (digest, size) else "changed"
    return {"path": path, "sha256": digest, "bytes": size, "here": state}


def _relative(path: str) -> str:
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def render_tree(tree: Mapping[str, Any], full: bool = False) -> str:
    """The trace for people. Jobs of one rule are one entry, unless ``full``."""
    lines = [_said(tree["artifact"]) + (f"  {tree['mark']}" if tree["mark"] else "")]
    revision = tree["revision"]
    edited = f", with {len(tree['edited'])} inputs edited: {', '.join(tree['edited'][:4])}" if tree["edited"] else ""
    lines.append(f"study {tree['study']}, {tree['config']}, commit {revision[:10] if revision else 'unknown'}{edited}")
    seeds = ", ".join(map(str, tree["seeds"])) or "none"
    total = sum(job["seconds"] for job in tree["jobs"])
    lines.append(f"{len(tree['jobs'])} jobs, {total:.0f} s of work, seed {seeds}")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, job in enumerate(tree["jobs"]):
        groups.setdefault(f"{job['rule']} {number}" if full else job["rule"], []).append(job)
    for jobs in groups.values():
        lines += _group(jobs, full)
    lines.append("raw files")
    raw = [f"   {_said(file)}  ({file['origin']})" for file in tree["raw"]]
    lines += raw or ["   none: everything is made from code and settings"]
    for name, machine in tree["environments"].items():
        gpu = f", {', '.join(machine['gpu'])}" if machine["gpu"] else ""
        lines.append(f"environment {name}: Python {machine['python']}, {machine['system']}, {machine['cpu']}{gpu}")
        lines.append(f"   requirements.lock {(machine['lock'] or 'none')[:12]}")
        lines.append("   " + ", ".join(f"{library} {version}" for library, version in machine["libraries"].items()))
    return "\n".join(lines)


def _group(jobs: list[Mapping[str, Any]], full: bool) -> list[str]:
    first = jobs[0]
    seconds = sum(job["seconds"] for job in jobs)
    where = ", ".join(sorted({job["where"] for job in jobs}))
    times = f" ×{len(jobs)}" if len(jobs) > 1 else ""
    lines = [f"{first['rule']}{times}: {first['started']}, {seconds:.1f} s, {first['threads']} threads, {where}"]
    files = {file["path"]: file for job in jobs for file in job["inputs"]}
    shown = list(files.values())
    limit = len(shown) if full else 6
    lines += [f"   from {_said(file)}" for file in shown[:limit]]
    if len(shown) > limit:
        lines.append(f"   from {len(shown) - limit} more files (--full)")
    keys = sorted({key for job in jobs for key in job["settings"]})
    if keys and full:
        lines += [f"   setting {key} = {first['settings'].get(key)}" for key in keys]
    elif keys:
        lines.append(f"   settings {', '.join(keys)}")
    own = [path for path in first["code"] if not path.endswith("__init__.py")]
    lines.append(f"   code {', '.join(path.removeprefix(CODE + 'levelt/') for path in own)}")
    if full or len(jobs) == 1:
        command = first["command"]
        lines.append(f"   $ {command if full or len(command) < 200 else command[:180] + ' ... (--full)'}")
        lines.append(f"   log {first['log']}")
    return lines


def _said(file: Mapping[str, Any]) -> str:
    here = "" if file["here"] == "same" else f" [{file['here']}]"
    return f"{file['path']} {(file['sha256'] or 'unrecorded')[:12]}{here}"
