"""Make results again in a scratch folder and compare them with the recorded ones, within stated tolerances."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from levelt.files import InputError, read_arrays, read_json, sha256
from levelt.ledger.book import Book, Entry, git
from levelt.ledger.records import FOLDER, record_path
from levelt.ledger.trace import chain, resolve
from levelt.marks import marks_in

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = 1e-3
"""Numbers in tables and JSON may differ by this much, absolute and relative: floating-point sums depend on the
machine's instructions, and tables are read to three decimals."""
ARRAYS = 1e-3
"""Arrays may differ by this share of their largest absolute value."""


@dataclass(frozen=True)
class Comparison:
    """One artifact made again: ``verdict`` is identical (same bytes), close (within tolerance) or different."""

    path: str
    verdict: str
    detail: str


def recompute(book: Book, figure: str | None, rules: Sequence[str], cores: str, say: TextIO) -> list[Comparison]:
    """Run the study again, elsewhere, and compare.

    Args:
        book: the study's book.
        figure: only this figure and all it rests on.
        rules: only the jobs of these rules, from the files that are here; everything from nothing when empty.
        cores: for Snakemake.
        say: where Snakemake's own progress goes.

    Raises:
        InputError: an unknown rule, a raw file is missing, or the run fails (its last line says why).
    """
    jobs = chain(book, resolve(book, figure)) if figure else list(book.jobs)
    unknown = set(rules) - {entry.rule for entry in jobs}
    if unknown:
        raise InputError(f"no job of rule {sorted(unknown)[0]} here; rules: {sorted({entry.rule for entry in jobs})}")
    again = [entry for entry in jobs if not rules or entry.rule in rules]
    targets = [path for entry in again for path in entry.outputs]
    with tempfile.TemporaryDirectory(prefix="levelt-recompute-") as name:
        scratch = Path(name) / "work"
        _prepare(scratch, book, again, whole=not rules)
        command = [sys.executable, "-m", "snakemake", "--cores", cores, "--configfile", book.config, "--", *targets]
        environment = {**os.environ, "PYTHONPATH": str(scratch / "src")}
        done = subprocess.run(command, cwd=scratch, env=environment, stdout=say, stderr=subprocess.STDOUT)
        if done.returncode:
            raise InputError(f"snakemake fails with status {done.returncode} when it makes {targets[0]} again")
        return [compare(path, book.files[path][0], scratch / path) for path in sorted(targets)]


def compare(path: str, recorded: str, again: Path) -> Comparison:
    """Compare a recorded artifact (in the working directory, for more than its hash) with the one made again."""
    if sha256(again) == recorded:
        return Comparison(path, "identical", "")
    if not Path(path).is_file() or sha256(path) != recorded:
        return Comparison(path, "different", "other bytes, and the recorded file is not here to compare with")
    kind = Path(path).suffix
    if kind in (".csv", ".parquet"):
        deviation, allowed = _tables(_table(Path(path)), _table(again)), NUMBERS
    elif kind == ".json":
        deviation, allowed = _json(_without_hashes(read_json(path)), _without_hashes(read_json(again))), NUMBERS
    elif kind == ".safetensors":
        deviation, allowed = _arrays(Path(path), again), ARRAYS
    elif kind in (".pdf", ".png") and marks_in(path) == marks_in(again) != {}:
        return Comparison(path, "close", "other bytes, the same numbers drawn")
    else:
        return Comparison(path, "different", "other bytes")
    verdict = "close" if deviation <= allowed else "different"
    said = "other columns, rows or words" if deviation == float("inf") else f"largest deviation {deviation:.2g}"
    return Comparison(path, verdict, f"{said}, tolerance {allowed:g}")


def _prepare(scratch: Path, book: Book, again: Sequence[Entry], whole: bool) -> None:
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        raise InputError("recomputing needs a git checkout: it copies the files that git knows or does not ignore")
    made = book.maker
    wanted = [name for name in listed.split("\0") if name and not name.startswith(("data/", "docs/", "tests/"))]
    wanted += [
        path for entry in book.jobs for path in entry.inputs if path not in made and not Path(path).is_absolute()
    ]
    removed = {path for entry in again for path in entry.outputs}
    if not whole:
        wanted += [path for path in made if path not in removed and Path(path).is_file()]
        records = [record_path(path) for path in made if path not in removed]
        wanted += [str(path) for path in records if path.is_file()]
        (scratch / FOLDER).mkdir(parents=True)
    for name in dict.fromkeys(wanted):
        if Path(name).is_file():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, scratch / name)
    for entry in again:  # checkpoints that are not made here are read where they are
        for key, value in entry.settings.items():
            path = Path(value["path"]) if key.startswith("checkpoints.") else None
            if path is not None and path.is_dir() and not path.is_absolute() and not (scratch / path).exists():
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / path).symlink_to(path.resolve())


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _tables(one: pd.DataFrame, other: pd.DataFrame) -> float:
    import numpy as np
    import pandas as pd

    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return float("inf")
    largest = 0.0
    for name in one.columns:
        if pd.api.types.is_numeric_dtype(one[name]) and pd.api.types.is_numeric_dtype(other[name]):
            a, b = one[name].to_numpy(float), other[name].to_numpy(float)
            if not (np.isnan(a) == np.isnan(b)).all():
                return float("inf")
            gap = np.nan_to_num(np.abs(a - b) / np.maximum(1, np.abs(b)))
            largest = max(largest, float(gap.max(initial=0)))
        elif (
            hashlib.sha256(one[name].to_json().encode()).digest()
            != hashlib.sha256(other[name].to_json().encode()).digest()
        ):
            return float("inf")
    return largest


def _json(one: Any, other: Any) -> float:
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((_json(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((_json(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if numeric:
        return float(abs(one - other) / max(1.0, abs(other)))
    return 0.0 if one == other else float("inf")


def _without_hashes(tree: Any) -> Any:
    """Hashes of other files are compared where those files are."""
    if isinstance(tree, Mapping):
        return {key: _without_hashes(value) for key, value in tree.items() if key != "sha256"}
    return [_without_hashes(value) for value in tree] if isinstance(tree, list) else tree


def _arrays(one: Path, other: Path) -> float:
    import numpy as np

    (a, _), (b, _) = read_arrays(one), read_arrays(other)
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    gaps = [float(np.abs(a[n] - b[n]).max(initial=0)) / max(float(np.abs(b[n]).max(initial=0)), 1e-12) for n in a]
    return max(gaps, default=0.0)
