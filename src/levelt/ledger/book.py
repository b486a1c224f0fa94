"""The book: one JSON file per study, in git, that says of every artifact what made it, from what, and its hash.

`levelt ledger commit` writes it from the DAG, Snakemake's records and the files; trace, verify, site and crate read it.
It names every file by SHA-256, so that a clone that pulled nothing can already be asked where a figure comes from.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from levelt.files import InputError, read_json, sha256, write_text
from levelt.ledger.environment import environment, libraries_of, name_of
from levelt.ledger.graph import Job
from levelt.ledger.records import Record, settings_of
from levelt.marks import mark_of

FORMAT = 1
FOLDER = Path("docs/provenance")
CODE = "src/"
"""Inputs under this folder are code."""


@dataclass(frozen=True)
class Entry:
    """One job that ran: ``code`` names a set of code files, ``environment`` a machine; ``record`` is the digest of
    Snakemake's records of it. ``started`` is UTC, ``seconds`` the wall time."""

    rule: str
    command: str
    inputs: tuple[str, ...]
    code: str
    outputs: tuple[str, ...]
    log: str
    threads: int
    started: str
    seconds: float
    environment: str
    record: str

    @property
    def settings(self) -> dict[str, Any]:
        """The config values the command was given."""
        return settings_of(self.command)


@dataclass(frozen=True)
class Book:
    """A study's provenance.

    ``files``: path -> (SHA-256, bytes), of every input and output. ``code``: name -> code files. ``environments``:
    name -> machine, lock file and library versions. ``figures``: name -> mark. ``revision``: the commit that was
    checked out, and ``edited``: the inputs that differed from it.
    """

    study: str
    config: str
    revision: str | None
    edited: tuple[str, ...]
    files: Mapping[str, tuple[str, int]]
    code: Mapping[str, tuple[str, ...]]
    environments: Mapping[str, Mapping[str, Any]]
    jobs: tuple[Entry, ...]
    figures: Mapping[str, str]

    @property
    def maker(self) -> dict[str, Entry]:
        """Output -> the job that made it."""
        return {path: entry for entry in self.jobs for path in entry.outputs}


def book_path(study: str) -> Path:
    """Where a study's book lies."""
    return FOLDER / f"{study}.json"


def hashes(paths: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Path -> (SHA-256, bytes) of every file that exists; hashing is done beside reading."""
    there = sorted({path for path in paths if Path(path).is_file()})
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(there, pool.map(lambda path: (sha256(path), Path(path).stat().st_size), there), strict=True))


def make_book(
    study: str,
    config: str,
    jobs: Sequence[Job],
    records: Mapping[str, Record],
    files: Mapping[str, tuple[str, int]],
    before: Book | None,
) -> Book:
    """The book of the state on disk.

    Args:
        study, config: name of the study and path of its config.
        jobs: from `read_jobs`.
        records: first output of a job -> its record.
        files: hashes of all inputs and outputs.
        before: the book as it was. A job that has not run since keeps the environment noted then; the revision stays
            too, when nothing else changed, so that committing twice writes the same bytes.
    """
    makers = [job for job in jobs if job.outputs]
    kept = {(entry.outputs[0], entry.record): entry.environment for entry in before.jobs} if before else {}
    libraries = libraries_of(path for job in makers for path in job.inputs)
    here = environment(libraries)
    code: dict[str, tuple[str, ...]] = {}
    entries = []
    for job in makers:
        record = records[job.outputs[0]]
        own = tuple(sorted(path for path in job.inputs if path.startswith(CODE)))
        closure = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
        code[closure] = own
        entries.append(
            Entry(
                rule=job.rule,
                command=record.command,
                inputs=tuple(sorted(set(job.inputs) - set(own))),
                code=closure,
                outputs=job.outputs,
                log=job.log,
                threads=job.threads,
                started=datetime.fromtimestamp(record.started, UTC).isoformat(timespec="seconds"),
                seconds=round(record.ended - record.started, 2),
                environment=kept.get((job.outputs[0], record.digest), name_of(here)),
                record=record.digest,
            )
        )
    entries.sort(key=lambda entry: entry.outputs)
    known = {**(before.environments if before else {}), name_of(here): here}
    revision, edited = _revision(path for job in makers for path in job.inputs)
    book = Book(
        study=study,
        config=config,
        revision=revision,
        edited=edited,
        files=dict(sorted(files.items())),
        code=dict(sorted(code.items())),
        environments={name: known[name] for name in sorted({entry.environment for entry in entries})},
        jobs=tuple(entries),
        figures=_figures(entries),
    )
    if before and _text(book, revision=None) == _text(before, revision=None):
        return before
    return book


def write_book(book: Book) -> None:
    """Write the book, whole or not at all; one line per file and per job, so that git shows what changed."""
    write_text(book_path(book.study), _text(book, book.revision))


def read_book(study: str) -> Book:
    """Read a study's book.

    Raises:
        InputError: there is none, or it is not one.
    """
    path = book_path(study)
    if not path.is_file():
        raise InputError(f"study {study} has no {path}: finish its run, then `levelt ledger commit`")
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT}, found {tree.get('format') if tree else None}")
    try:
        return Book(
            study=tree["study"],
            config=tree["config"],
            revision=tree["revision"],
            edited=tuple(tree["edited"]),
            files={name: (digest, size) for name, (digest, size) in tree["files"].items()},
            code={name: tuple(paths) for name, paths in tree["code"].items()},
            environments=tree["environments"],
            jobs=tuple(
                Entry(**{**job, "inputs": tuple(job["inputs"]), "outputs": tuple(job["outputs"])})
                for job in tree["jobs"]
            ),
            figures=tree["figures"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); `git checkout {path}` restores it") from None


def _text(book: Book, revision: str | None) -> str:
    tree = {"format": FORMAT, **asdict(book), "revision": revision}
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {_json(name)}: {_json(part)}" for name, part in value.items())
            lines.append(f" {_json(key)}: {{\n{inner}\n }}")
        elif key == "jobs":
            inner = ",\n".join(f"  {_json(part)}" for part in value)
            lines.append(f" {_json(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _figures(entries: Iterable[Entry]) -> dict[str, str]:
    """Name -> mark of everything drawn: a job that makes a PDF, a PNG and a CSV of one name."""
    figures = {}
    for entry in entries:
        by_suffix = {Path(path).suffix: path for path in entry.outputs}
        if {".pdf", ".png", ".csv"} <= set(by_suffix) and len({Path(path).stem for path in entry.outputs}) == 1:
            name = Path(by_suffix[".csv"]).stem
            figures[name] = mark_of(name, by_suffix[".csv"])
    return dict(sorted(figures.items()))


def _revision(inputs: Iterable[str]) -> tuple[str | None, tuple[str, ...]]:
    """The commit checked out, and the inputs that differ from it (edited, or not in git at all)."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return None, ()
    # from this folder (it may lie in a bigger repository), and letters beyond ASCII as they are
    changed = set((git("diff", "--relative", "-z", "--name-only", "HEAD") or "").split("\0"))
    others = set((git("ls-files", "-z", "--others", "--exclude-standard") or "").split("\0"))
    return head, tuple(sorted({path for path in inputs if path in changed | others}))


def git(*arguments: str) -> str | None:
    """What a git command prints, or None where there is no git repository (or no git)."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
