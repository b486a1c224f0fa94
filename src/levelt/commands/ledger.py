"""Keep the ledger: record a finished run, trace a figure, verify everything, export."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from levelt.config import load
from levelt.files import InputError, write_text
from levelt.ledger.book import book_path, read_book
from levelt.ledger.stages import LOCAL_ONLY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt ledger`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", default="config/organisms.yaml", help="the study (default: %(default)s)")

    stages = actions.add_parser("stages", parents=[common], help="derive dvc.yaml and .dvcignore from the rules")
    stages.add_argument("--check", action="store_true", help="only say whether they are up to date")
    rooms = f"rooms that are hashed but not stored (default: {' '.join(sorted(LOCAL_ONLY))})"
    stages.add_argument("--local-only", nargs="*", metavar="ROOM", help=rooms)

    commit = actions.add_parser("commit", parents=[common], help="record a finished run: dvc.lock and the book")
    commit.add_argument("--prune", action="store_true", help="delete files that no job of the study makes any more")

    actions.add_parser("publish", parents=[common], help="write the bundled remote, data/remote")

    trace = actions.add_parser("trace", parents=[common], help="what an artifact rests on, down to the raw files")
    trace.add_argument("target", help="a path, a figure's name, or the code printed under it")
    trace.add_argument("--json", action="store_true", help="everything, for machines")
    trace.add_argument("--full", action="store_true", help="every job and file")

    verify = actions.add_parser("verify", parents=[common], help="check every file, record and number")
    verify.add_argument("--json", action="store_true", help="the findings, for machines")
    verify.add_argument("--partial", action="store_true", help="files that are not here were not pulled on purpose")
    verify.add_argument("--recompute", action="store_true", help="make it again in a scratch folder, and compare")
    verify.add_argument("--figure", help="with --recompute: only this figure, and all it rests on")
    verify.add_argument("--rules", nargs="+", default=[], help="with --recompute: these rules, from the rest as it is")
    verify.add_argument("--cores", default="all", help="with --recompute: cores to use")

    site = actions.add_parser("site", parents=[common], help="a page per figure, offline: docs/provenance/<study>/")
    site.add_argument("--out", type=Path, help="folder (default: where the report's links lead)")

    crate = actions.add_parser("crate", parents=[common], help="a Workflow Run RO-Crate of the study")
    crate.add_argument("--out", type=Path, required=True, help="folder to write, or a .zip file")


def run(arguments: argparse.Namespace) -> int:
    """Dispatch; modules are imported by the action that needs them."""
    if not Path("Snakefile").is_file():
        raise InputError(f"no Snakefile in {Path.cwd()}: run `levelt ledger` in the folder of the repository")
    # as it is written into dvc.yaml and the book: one file, one name, and no path of this machine
    arguments.config = os.path.relpath(arguments.config)
    action: int = globals()[f"_{arguments.action}"](arguments)
    return action


def _study(arguments: argparse.Namespace) -> str:
    return load(arguments.config).study


def _stages(arguments: argparse.Namespace) -> int:
    from levelt.ledger.commit import derived, local_only
    from levelt.ledger.graph import read_jobs

    _study(arguments)
    rooms = local_only(sorted(LOCAL_ONLY)) if arguments.local_only is None else arguments.local_only
    jobs = read_jobs(Path("Snakefile"), Path(arguments.config))
    for path, text in derived(jobs, arguments.config, rooms).items():
        if not arguments.check:
            write_text(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path} does not match the rules: run `levelt ledger stages`")
    return 0


def _commit(arguments: argparse.Namespace) -> int:
    from levelt.ledger.commit import commit, local_only

    rooms = local_only(sorted(LOCAL_ONLY))
    book, by_time = commit(_study(arguments), arguments.config, rooms, prune=arguments.prune)
    print(
        f"{len(book.jobs)} jobs and {len(book.files)} files recorded in dvc.lock and {book_path(book.study)}; "
        "commit both to git"
    )
    if by_time:
        print(
            f"warning: {by_time[0]} and {len(by_time) - 1} other inputs have no checksum (bigger than "
            "max-checksum-file-size, and not behind a manifest): after a clone they are judged by file time",
            file=sys.stderr,
        )
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from levelt.ledger.publish import publish

    objects, size, packed = publish(read_book(_study(arguments)))
    print(
        f"data/remote: {objects} objects, {size / 1e6:.1f} MB, packed by git to {packed / 1e6:.1f} MB; commit it to git"
    )
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from levelt.ledger.trace import render_tree, trace

    tree = trace(read_book(_study(arguments)), arguments.target)
    text = json.dumps(tree, indent=1, ensure_ascii=False) if arguments.json else render_tree(tree, arguments.full)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from levelt.ledger.verify import verify

    if arguments.recompute and arguments.partial:
        raise InputError("--partial says what may be absent; --recompute makes it again: give one of them")
    if arguments.recompute:
        return _recompute(arguments)
    if arguments.figure or arguments.rules:
        raise InputError("--figure and --rules say what to make again: they need --recompute")
    book = read_book(_study(arguments))
    verdict = verify(book, partial=arguments.partial)
    if arguments.json:
        tree = {
            "ok": not verdict.findings,
            "checked": dict(verdict.checked),
            "findings": [vars(finding) for finding in verdict.findings],
            "notes": list(verdict.notes),
        }
        print(json.dumps(tree, indent=1, ensure_ascii=False))
        return 1 if verdict.findings else 0
    for finding in verdict.findings:
        print(f"WRONG  {finding.path}: {finding.problem}\n       to do: {finding.remedy}")
    for note in verdict.notes:
        print(f"note   {note}")
    counts = ", ".join(f"{count} {what}" for what, count in verdict.checked.items())
    print(f"checked {counts}: {f'{len(verdict.findings)} wrong' if verdict.findings else 'all as recorded'}")
    return 1 if verdict.findings else 0


def _recompute(arguments: argparse.Namespace) -> int:
    from levelt.ledger.recompute import recompute

    book = read_book(_study(arguments))
    results = recompute(book, figure=arguments.figure, rules=arguments.rules, cores=arguments.cores, say=sys.stderr)
    if arguments.json:
        print(json.dumps([vars(result) for result in results], indent=1, ensure_ascii=False))
    else:
        for result in results:
            if result.verdict != "identical":
                print(f"{result.verdict:<10} {result.path}: {result.detail}")
        counts = {v: sum(r.verdict == v for r in results) for v in ("identical", "close", "different")}
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if any(result.verdict == "different" for result in results) else 0


def _site(arguments: argparse.Namespace) -> int:
    from levelt.ledger.site import write_site

    book = read_book(_study(arguments))
    index = write_site(book, arguments.out or book_path(book.study).with_suffix(""))
    print(index)
    return 0


def _crate(arguments: argparse.Namespace) -> int:
    from levelt.ledger.crate import write_crate

    print(write_crate(read_book(_study(arguments)), arguments.out))
    return 0
