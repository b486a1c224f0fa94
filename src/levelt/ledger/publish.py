"""Write the bundled remote: the artifacts that a bare clone can pull without an account and without a network."""

from __future__ import annotations

import json
import subprocess

from levelt.files import InputError
from levelt.ledger.book import Book
from levelt.ledger.plan import dvc_changes, dvc_command, dvc_environment, dvc_outs
from levelt.ledger.stages import RECORDS, folder_of
from levelt.ledger.verify import REMOTE, stored_hashes

LIMIT = 40_000_000
"""Bytes: what a git repository can carry without becoming a burden."""
NAME = "bundled"


def publish(book: Book) -> tuple[int, int]:
    """Push what `levelt ledger commit` recorded into data/remote, and remove objects that dvc.lock no longer names.

    Returns:
        Number of objects and bytes in the remote.

    Raises:
        InputError: what would be published is too big (names the biggest folders), or not what was recorded.
    """
    sizes: dict[str, int] = {}
    stored = {folder for folder, stored in dvc_outs().items() if stored}
    for path in book.maker:
        if folder_of(path) in stored:
            sizes[folder_of(path)] = sizes.get(folder_of(path), 0) + book.files[path][1]
    if sum(sizes.values()) > LIMIT:
        biggest = ", ".join(f"{name} {sizes[name] / 1e6:.1f} MB" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise InputError(
            f"{sum(sizes.values()) / 1e6:.1f} MB would go into {REMOTE}, at most {LIMIT / 1e6:.0f} MB may: {biggest}; "
            f"keep a folder out with `levelt ledger stages --local-only activations NAME`"
        )
    changed = [path for _, path, _ in dvc_changes() if path in stored or path == RECORDS]
    if changed:
        raise InputError(f"{changed[0]} is not what was recorded: run `levelt ledger commit` first")
    done = subprocess.run(dvc_command("push", "--remote", NAME), capture_output=True, text=True, env=dvc_environment())
    if done.returncode:
        raise InputError(f"dvc push fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    objects = {path.parent.name + path.name: path for path in (REMOTE / "files/md5").glob("??/*")}
    needed = set(stored_hashes().values())
    for name in [name for name in needed if name.endswith(".dir")]:
        needed |= {member["md5"] for member in json.loads(objects[name].read_bytes())}
    for name in set(objects) - needed:
        objects.pop(name).unlink()
    return len(objects), sum(path.stat().st_size for path in objects.values())
