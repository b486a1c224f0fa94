"""Write the bundled remote: the artifacts that a bare clone can pull without an account and without a network."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from levelt.files import InputError
from levelt.ledger.book import Book
from levelt.ledger.commit import KEPT
from levelt.ledger.plan import dvc_changes, dvc_command, dvc_environment, dvc_outs
from levelt.ledger.stages import RECORDS, folder_of
from levelt.ledger.verify import REMOTE, stored_hashes

LIMIT = 40_000_000
"""Bytes that git transfers and keeps, compressed: what a repository can carry without becoming a burden."""
NAME = "bundled"


def publish(book: Book) -> tuple[int, int, int]:
    """Push what `levelt ledger commit` recorded into data/remote, and remove objects that dvc.lock no longer names.

    Returns:
        Number of objects in the remote, their bytes, and the bytes git packs them to.

    Raises:
        InputError: what would be published is too big (names the biggest folders), or not what was recorded.
    """
    if KEPT.is_file():
        raise InputError(
            f"a commit was interrupted, or is at work: run `levelt ledger commit --config {book.config}`, then publish"
        )
    stored = {folder for folder, stored in dvc_outs().items() if stored}
    changed = [path for _, path, _ in dvc_changes() if path in stored or path == RECORDS]
    if changed:
        raise InputError(f"{changed[0]} is not what was recorded: run `levelt ledger commit` first")
    cache = Path(_dvc("cache", "dir").strip()) / "files/md5"
    needed = _members(cache)
    packed = packed_size(cache / name[:2] / name[2:] for name in sorted(needed))
    if packed > LIMIT:
        sizes: dict[str, int] = {}
        for path in book.maker:
            if folder_of(path) in stored:
                sizes[folder_of(path)] = sizes.get(folder_of(path), 0) + book.files[path][1]
        biggest = ", ".join(f"{name} {sizes[name] / 1e6:.1f} MB" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise InputError(
            f"{packed / 1e6:.1f} MB, compressed by git, would go into {REMOTE}, at most {LIMIT / 1e6:.0f} MB may; "
            f"uncompressed, {biggest}; keep a folder out with `levelt ledger stages --local-only NAME ...`"
        )
    _dvc("push", "--remote", NAME)
    objects = {path.parent.name + path.name: path for path in (REMOTE / "files/md5").glob("??/*")}
    for name in set(objects) - needed:
        objects.pop(name).unlink()
    return len(objects), sum(path.stat().st_size for path in objects.values()), packed


def packed_size(paths: Iterable[Path]) -> int:
    """Bytes of the pack that git makes of these files: what a clone downloads and keeps for them."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", f"--git-dir={folder}"]
        subprocess.run([*git, "init", "--quiet", "--bare"], check=True)
        names = "\n".join(str(path.absolute()) for path in paths)
        write = [*git, "hash-object", "-w", "--no-filters", "--stdin-paths"]
        ids = subprocess.run(write, input=names, capture_output=True, text=True, check=True).stdout
        pack = Path(folder) / "pack"
        with pack.open("wb") as file:
            subprocess.run([*git, "pack-objects", "--quiet", "--stdout"], input=ids.encode(), stdout=file, check=True)
        return pack.stat().st_size


def _members(cache: Path) -> set[str]:
    """The hashes of everything dvc.lock names and stores: folders, and the files in them."""
    needed = set(stored_hashes().values())
    for name in [name for name in needed if name.endswith(".dir")]:
        needed |= {member["md5"] for member in json.loads((cache / name[:2] / name[2:]).read_bytes())}
    lost = [name for name in sorted(needed) if not (cache / name[:2] / name[2:]).is_file()]
    if lost:
        raise InputError(f"DVC's cache lacks {lost[0]} and {len(lost) - 1} others: run `levelt ledger commit` first")
    return needed


def _dvc(*arguments: str) -> str:
    done = subprocess.run(dvc_command(*arguments), capture_output=True, text=True, env=dvc_environment())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"dvc {arguments[0]} fails: {last}")
    return done.stdout
