"""Record a finished run: DVC's lock and the book, or nothing.

Safe when called twice (the same state writes the same bytes), when another one runs (a lock), and when killed: DVC
writes dvc.lock in place, so a copy of it is kept until the end and put back by whoever comes next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from levelt.files import InputError, replacing, write_text
from levelt.ledger.book import Book, book_path, git, hashes, make_book, read_book, write_book
from levelt.ledger.graph import Job, read_jobs
from levelt.ledger.plan import dry_run, dvc_command, dvc_environment, dvc_outs, running
from levelt.ledger.records import FOLDER, Record, output_of, read_record
from levelt.ledger.stages import folder_of, ignored, render, stages

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/levelt-commit-dvc.lock")
"""dvc.lock as it was before a commit that has not finished; empty where there was none."""
_MUTEX = Path(".dvc/tmp/levelt-commit")
_IGNORED = (".partial", ".failed")


def derived(jobs: Sequence[Job], config: str, local_only: Sequence[str]) -> dict[Path, str]:
    """The files that are derived from the rules, and their text."""
    tree = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    return {Path("dvc.yaml"): render(stages(jobs, config, tree, local_only)), Path(".dvcignore"): ignored(jobs)}


def local_only(default: Sequence[str]) -> list[str]:
    """The rooms that dvc.yaml does not store, or ``default`` where there is no dvc.yaml yet."""
    if not Path("dvc.yaml").is_file():
        return list(default)
    return [Path(folder).name for folder, stored in dvc_outs().items() if not stored]


def commit(study: str, config: str, rooms: Sequence[str], prune: bool = False) -> tuple[Book, list[str]]:
    """Record the hashes of a finished run in dvc.lock and the book.

    Args:
        study, config: name of the study and path of its config.
        rooms: folders of a study that are hashed but not stored.
        prune: delete leftovers (files and records of jobs the study no longer has) instead of refusing.

    Returns:
        The book, and the inputs that Snakemake judges by file time (too big for a checksum, not behind a manifest).

    Raises:
        InputError: the run is not finished, or the files are not what its jobs read or wrote; nothing is recorded.
    """
    if "DVC_STAGE" in os.environ:
        raise InputError("`levelt ledger commit` was called from inside a DVC stage; call it after the run")
    with _alone():
        restore()
        jobs = read_jobs(Path("Snakefile"), Path(config))
        if running():
            raise InputError("snakemake is at work here (or was killed: `snakemake --unlock`); commit when it is done")
        plan = dry_run(config)
        if not plan.clean:
            raise InputError(
                "the run is not complete (snakemake -n has work to do): "
                f"run `snakemake --cores all --configfile {config}`"
            )
        for path, text in derived(jobs, config, rooms).items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                raise InputError(f"{path} does not match the rules: run `levelt ledger stages --config {config}`")
        _leftovers(jobs, prune)
        before = read_book(study) if book_path(study).is_file() else None
        named = {path for job in jobs for path in (*job.inputs, *job.outputs)}
        stamps = _stamps(named)
        records = {job.outputs[0]: read_record(job.outputs) for job in jobs if job.outputs}
        files = hashes(named)
        _consistent(jobs, records, files, before)
        _dvc_commit()
        if running() or _stamps(named) != stamps:  # the book would name other bytes than dvc.lock
            restore()
            raise InputError("files changed while they were recorded (was snakemake started?); commit when it is done")
        write_book(make_book(study, config, jobs, records, files, before))
        KEPT.unlink(missing_ok=True)
        return read_book(study), _judged_by_time(jobs, records)


def restore() -> bool:
    """Put back dvc.lock if a commit was interrupted; says whether one was. A lock that git has as it is stays: it was
    checked out or pulled since, and the copy is older."""
    if not KEPT.is_file():
        return False
    if LOCK.is_file() and git("show", f"HEAD:./{LOCK}") == LOCK.read_text(encoding="utf-8").strip():
        pass
    elif KEPT.stat().st_size:
        with replacing(LOCK) as temporary:
            shutil.copyfile(KEPT, temporary)
    else:
        LOCK.unlink(missing_ok=True)
    KEPT.unlink()
    return True


def _stamps(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Path -> (file time, size) of every file that exists."""
    stats = {path: Path(path).stat() for path in paths if Path(path).is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def _dvc_commit() -> None:
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    with replacing(KEPT) as temporary:
        temporary.write_bytes(LOCK.read_bytes() if LOCK.is_file() else b"")
    if LOCK.is_file():  # DVC would keep stages that no longer exist
        tree: dict[str, Any] = yaml.safe_load(LOCK.read_text(encoding="utf-8"))
        now = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
        if gone := set(tree["stages"]) - set(now):
            tree["stages"] = {name: stage for name, stage in tree["stages"].items() if name not in gone}
            write_text(LOCK, yaml.safe_dump(tree, sort_keys=False))
    # --no-relink leaves file times alone
    command = dvc_command("commit", "--force", "--no-relink")
    done = subprocess.run(command, capture_output=True, text=True, env=dvc_environment())
    if done.returncode:
        restore()
        raise InputError(f"dvc commit fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of `levelt ledger commit`; the system frees it when the process ends, however it ends."""
    _MUTEX.parent.mkdir(parents=True, exist_ok=True)
    with _MUTEX.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another `levelt ledger commit` is at work here; try again when it is done") from None
        yield


def _leftovers(jobs: Sequence[Job], prune: bool) -> None:
    """Refuse (or remove) what lies in the study's folders without being made by its jobs: it would be published."""
    outputs = {path for job in jobs for path in job.outputs}
    folders = {folder_of(path) for path in outputs}
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    left = [path for path in files if str(path) not in outputs and _counts(path)]
    roots = tuple({"/".join(Path(path).parts[:2]) + "/" for path in outputs})
    records = [path for path in FOLDER.rglob("*") if path.is_file()]
    left += [path for path in records if (of := output_of(path)) not in outputs and of.startswith(roots)]
    if left and not prune:
        named = ", ".join(sorted(map(str, left))[:3])
        raise InputError(
            f"{len(left)} files are made by no job of this study ({named}{', ...' if len(left) > 3 else ''}): "
            f"remove them, or let `levelt ledger commit --prune` do it"
        )
    for path in left:
        path.unlink()


def _counts(path: Path) -> bool:
    return path.name != ".snakemake_timestamp" and not any(part.endswith(_IGNORED) for part in path.parts)


def _judged_by_time(jobs: Sequence[Job], records: Mapping[str, Record]) -> list[str]:
    return sorted(
        {
            path
            for job in jobs
            if job.outputs
            for path in set(job.inputs) - set(job.ancient) - set(records[job.outputs[0]].checksums)
        }
    )


def _consistent(
    jobs: Sequence[Job],
    records: Mapping[str, Record],
    files: Mapping[str, tuple[str, int]],
    before: Book | None,
) -> None:
    """Every file is what the jobs that read it read, and what the job that made it had made at the last commit."""
    for job in jobs:
        if not job.outputs:
            continue
        for path in job.outputs:
            if path not in files:
                raise InputError(f"{path} is missing, though its job was done: run `snakemake --cores all {path}`")
        for path, checksum in sorted(records[job.outputs[0]].checksums.items()):
            if path in files and files[path][0] != checksum:
                raise InputError(
                    f"{path} is not what {job.outputs[0]} was made from (changed afterwards, with an old file time): "
                    f"restore it (`dvc checkout {path}` or git), or remove {job.outputs[0]} and run snakemake"
                )
    if before is None:
        return
    for entry in before.jobs:
        record = records.get(entry.outputs[0])
        if record is None or record.digest != entry.record:
            continue  # the job has run since, or is gone
        for path in entry.outputs:
            if path in files and path in before.files and files[path] != before.files[path]:
                raise InputError(
                    f"{path} was changed by hand: no job made it again since the last commit; restore it with "
                    f"`dvc checkout {path}`, or remove it and run snakemake"
                )
