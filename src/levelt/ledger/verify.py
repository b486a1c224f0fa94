"""Verify a study against its ledger, offline: every file, record, mark and number, with a remedy for what is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from levelt.files import InputError
from levelt.ledger.book import CODE, Book, book_path, git, hashes
from levelt.ledger.commit import KEPT, derived, local_only
from levelt.ledger.environment import environment, libraries_of, locked, same_version
from levelt.ledger.graph import read_jobs
from levelt.ledger.numbers import number_findings
from levelt.ledger.plan import dry_run, dvc_changes, dvc_outs
from levelt.ledger.records import read_record
from levelt.ledger.stages import LOCAL_ONLY, RECORDS, folder_of
from levelt.marks import mark_of, marks_in

REMOTE = Path("data/remote")
CACHE = Path(".dvc/cache/files/md5")


@dataclass(frozen=True)
class Finding:
    """Something that is not as the ledger says: which file, what is the matter, and what to run."""

    path: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """What was checked (name -> how many), what is wrong, and what is worth knowing without being wrong."""

    checked: Mapping[str, int]
    findings: Sequence[Finding]
    notes: Sequence[str]


def verify(book: Book, partial: bool = False) -> Verdict:
    """Check everything that can be checked without running a job.

    Args:
        book: the study's book.
        partial: files that are not here are expected to be elsewhere (a partial `dvc pull`), not missing.
    """
    here = hashes(book.files)
    findings: list[Finding] = []
    notes: list[str] = []
    if KEPT.is_file():
        findings.append(Finding("dvc.lock", "a commit was interrupted", f"levelt ledger commit --config {book.config}"))
    objects = len(_objects())
    restore = "git checkout dvc.yaml dvc.lock .dvc data/remote"
    for subject, remedy, check in (
        ("dvc.yaml", restore, _files(book, here, partial, notes)),
        (RECORDS, f"dvc checkout --force {RECORDS}", _records(book, here)),
        ("figures", _rerun(book), _marks(book, here)),
        ("numbers", _rerun(book), _numbers(book, here)),
        ("dvc.yaml", restore, _drift(book)),
        ("Snakefile", _rerun(book), _plan(book, here, partial)),
        ("dvc.lock", restore, _dvc(book, here, findings, partial)),
        (str(REMOTE), restore, _remote(notes)),
        ("requirements.lock", "git checkout requirements.lock", _libraries(book, notes)),
    ):
        try:
            findings.extend(check)
        except Exception as error:  # whatever a damaged file does to a check: it is named, and the other checks go on
            findings.append(Finding(subject, f"cannot be checked: {error}", remedy))
    for path in ("dvc.lock", str(book_path(book.study))):
        if git("status", "--porcelain", "--", path):
            notes.append(f"{path} has changes that are not committed to git")
    checked = {
        "files": len(here),
        "jobs": len(book.jobs),
        "figures": sum(f"figures/{book.study}/{name}.csv" in here for name in book.figures),
        "objects of the bundled remote": objects,
    }
    return Verdict(checked, _once(findings), notes)


def _files(book: Book, here: Mapping[str, tuple[str, int]], partial: bool, notes: list[str]) -> Iterator[Finding]:
    stored = {folder for folder, stored in dvc_outs().items() if stored}
    made = book.maker
    absent: dict[str, list[str]] = {}
    for path, recorded in book.files.items():
        if path not in here and path in made:
            absent.setdefault(folder_of(path), []).append(path)
        elif path not in here:
            yield Finding(path, "an input of the run is missing", f"git checkout {path}")
        elif here[path] != recorded and path in made:
            yield Finding(path, "its bytes are not the recorded ones", _restored(path, book))
        elif here[path] != recorded:
            yield Finding(path, f"{'code' if path.startswith(CODE) else 'input'} edited since the run", _rerun(book))
    for folder, paths in absent.items():
        if partial or folder not in stored:
            notes.append(
                f"{folder}: {len(paths)} files are not here (never stored, or not pulled) and were not checked"
            )
        elif len(paths) == sum(folder_of(path) == folder for path in made):
            yield Finding(folder, "is missing (with --partial that is no fault)", f"dvc pull {folder}")
        else:
            for path in paths:
                yield Finding(path, "is missing (with --partial that is no fault)", f"dvc pull {path}")


def _records(book: Book, here: Mapping[str, tuple[str, int]]) -> Iterator[Finding]:
    for entry in book.jobs:
        if not any(path in here for path in entry.outputs):
            continue
        try:
            record = read_record(entry.outputs)
        except InputError as error:
            yield Finding(entry.outputs[0], str(error).split(": ", 1)[-1], f"dvc checkout --force {RECORDS}")
            continue
        if record.digest != entry.record:
            yield Finding(
                entry.outputs[0], "Snakemake's record of it is not the recorded one", f"dvc checkout --force {RECORDS}"
            )
        for path, checksum in record.checksums.items():
            if path in book.files and book.files[path][0] != checksum:
                yield Finding(entry.outputs[0], f"was made from another {path} than the recorded one", _rerun(book))


def _marks(book: Book, here: Mapping[str, tuple[str, int]]) -> Iterator[Finding]:
    for entry in book.jobs:
        for path in (path for path in entry.outputs if path in here and path.endswith((".pdf", ".png"))):
            marks = marks_in(path)
            name = Path(path).stem
            numbers = str(Path(path).with_suffix(".csv"))
            if name in book.figures and numbers in entry.outputs:
                expected = {name: mark_of(name, numbers)} if numbers in here else {name: book.figures[name]}
                remedy = f"rm {path} && snakemake --cores all --configfile {book.config}"
            else:  # a document: it shows figures, and quotes the numbers of its own input
                names = [Path(source).stem for source in entry.inputs]
                expected = {shown: book.figures[shown] for shown in names if shown in book.figures}
                for quoted in (source for source in entry.inputs if Path(source).name == "numbers.tex"):
                    if quoted in here:
                        expected["numbers"] = mark_of("numbers", quoted)
                remedy = _rerun(book)
            for figure in sorted(set(expected) | set(marks)):
                if marks.get(figure) != expected.get(figure):
                    said, meant = marks.get(figure, "no mark"), expected.get(figure, "none")
                    yield Finding(path, f"carries {said} for {figure}, the numbers say {meant}", remedy)


def _numbers(book: Book, here: Mapping[str, tuple[str, int]]) -> Iterator[Finding]:
    unchanged = {path: recorded for path, recorded in here.items() if book.files[path] == recorded}
    for found in number_findings(book, unchanged):
        yield Finding(*found)


def _drift(book: Book) -> Iterator[Finding]:
    jobs = read_jobs(Path("Snakefile"), Path(book.config))
    for file, text in derived(jobs, book.config, local_only(sorted(LOCAL_ONLY))).items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            yield Finding(str(file), "does not match the rules", f"levelt ledger stages --config {book.config}")
    now = {path for job in jobs for path in job.outputs}
    for path in sorted(now - set(book.maker)):
        yield Finding(path, "the rules make it, the ledger does not know it", _rerun(book))


def _plan(book: Book, here: Mapping[str, tuple[str, int]], partial: bool) -> Iterator[Finding]:
    targets = _last(book, here) if partial else []
    if partial and not targets:
        return
    plan = dry_run(book.config, targets)
    if plan.jobs:
        jobs = ", ".join(f"{count} {rule}" for rule, count in plan.jobs.items())
        yield Finding("Snakefile", f"snakemake -n has work to do: {jobs}", _rerun(book))
    elif plan.records_missing:
        yield Finding(RECORDS, "records are missing, so staleness is judged by file times", f"dvc pull {RECORDS}")


def _last(book: Book, here: Mapping[str, tuple[str, int]]) -> list[str]:
    """The files that are here and from which nothing else here was made."""
    used = {path for entry in book.jobs if any(out in here for out in entry.outputs) for path in entry.inputs}
    return [path for path in book.maker if path in here and path not in used]


def _dvc(book: Book, here: Mapping[str, tuple[str, int]], known: Iterable[Finding], partial: bool) -> Iterator[Finding]:
    named = [finding.path for finding in known]
    incomplete = {folder_of(path) for path in book.maker if path not in here}
    for stage, path, what in dvc_changes():
        explained = any(name == path or name.startswith(path + "/") for name in named)
        records = path == RECORDS and any("record" in finding.problem for finding in known)
        if explained or records or (partial and (path in incomplete or stage in path or what == "deleted")):
            continue
        yield Finding(path, f"dvc status of stage {stage}: {what}", f"dvc checkout {path}, or {_rerun(book)}")


def _objects() -> dict[str, Path]:
    """The bundled remote's objects by name (MD5, as DVC stores them)."""
    return {path.parent.name + path.name: path for path in (REMOTE / "files/md5").glob("??/*")}


def _remote(notes: list[str]) -> Iterator[Finding]:
    """Check the bundled remote: every object is what its name says, and none that dvc.lock needs is missing.

    What is missing there but in the local cache was not published yet, which is no fault before the next `git push`;
    what git has and the folder has not was deleted.
    """
    objects = _objects()
    deleted = map(Path, (git("ls-files", "-z", "--deleted", "--", str(REMOTE)) or "").split("\0"))
    gone = {path.parent.name + path.name: path for path in deleted}
    if not objects and not any(name in gone for name in stored_hashes().values()):
        return
    sound = {}
    for name, path in objects.items():
        if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == name.removesuffix(".dir"):
            sound[name] = path
        else:
            yield Finding(str(path), "an object of the remote is not what its name says", f"git checkout {path}")
    behind = 0
    for folder, digest in stored_hashes().items():
        for name in [digest, *_members(sound.get(digest))]:
            if name in objects:
                continue
            if name in gone:
                yield Finding(str(gone[name]), "an object of the remote was deleted", f"git checkout {gone[name]}")
            elif (CACHE / name[:2] / name[2:]).is_file():
                behind += 1
            else:
                yield Finding(f"{REMOTE}: {folder}", f"object {name} is missing", "levelt ledger publish")
    if behind:
        notes.append(f"{REMOTE} is behind dvc.lock by {behind} objects or more: levelt ledger publish")


def stored_hashes() -> dict[str, str]:
    """Out -> MD5 that dvc.lock records, of everything DVC stores."""
    stored = {folder for folder, stored in dvc_outs().items() if stored}
    lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8")) if Path("dvc.lock").is_file() else {}
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if out["path"] in stored}


def _members(listing: Path | None) -> list[str]:
    if listing is None or not listing.name.endswith(".dir"):
        return []
    return [member["md5"] for member in json.loads(listing.read_bytes())]


def _libraries(book: Book, notes: list[str]) -> Iterator[Finding]:
    """Libraries that the lock file now pins at another version than the jobs that import them ran with."""
    pins = locked()
    stale: dict[tuple[str, str, str], set[str]] = {}
    for entry in book.jobs:
        ran = book.environments[entry.environment]["libraries"]
        for name in libraries_of(book.code[entry.code]):
            if name in pins and not same_version(pins[name], ran.get(name)):
                stale.setdefault((name, str(ran.get(name)), pins[name]), set()).add(entry.rule)
    for (name, ran_with, pinned), rules in sorted(stale.items()):
        names = " ".join(sorted(rules))
        yield Finding(
            "requirements.lock",
            f"pins {name} {pinned}, but {names} ran with {ran_with}",
            f"snakemake --cores all --configfile {book.config} --forcerun {names}, then levelt ledger commit",
        )
    used = {name for tree in book.environments.values() for name in tree["libraries"]}
    now = environment(used)["libraries"]
    for tree in book.environments.values():
        for name, version in tree["libraries"].items():
            if not same_version(now[name], version):
                notes.append(f"{name} is {now[name]} here; the run had {version}")


def _restored(path: str, book: Book) -> str:
    stored = dvc_outs().get(folder_of(path))
    return f"rm {path} && " + (f"dvc pull {path}" if stored else f"snakemake --cores all --configfile {book.config}")


def _rerun(book: Book) -> str:
    return f"snakemake --cores all --configfile {book.config}, then levelt ledger commit --config {book.config}"


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
