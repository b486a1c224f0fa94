"""Snakemake's own records: one JSON file per output, saying which command made it, when, and from which bytes.

Read only. Snakemake writes them (`.snakemake/metadata`, named by the URL-safe base64 of the output's path); the ledger
ships them with the artifacts and checks what they say against the files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from levelt.files import InputError

FOLDER = Path(".snakemake/metadata")
LOCKS = Path(".snakemake/locks")
_LONGEST = 255
"""Longest name of a folder entry, where the system does not say."""


@dataclass(frozen=True)
class Record:
    """What Snakemake noted when a job was done.

    ``checksums`` are of the inputs as the job read them (those small enough to be hashed, profiles/default);
    ``digest`` is of the record files themselves.
    """

    command: str
    started: float
    ended: float
    checksums: dict[str, str]
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """The config values the command was given."""
        return settings_of(self.command)


def record_path(output: str, folder: Path = FOLDER) -> Path:
    """Where the record of an output lies; a long name is cut into folders, as Snakemake does it."""
    longest = (os.pathconf(folder, "PC_NAME_MAX") if folder.is_dir() else 0) or _LONGEST
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + longest - 1] for start in range(0, len(name), longest - 1)]
    return folder.joinpath(*("@" + part for part in parts[:-1]), parts[-1])


def output_of(path: Path, folder: Path = FOLDER) -> str:
    """The output a record file belongs to.

    Raises:
        InputError: the file's name is not one that Snakemake gives.
    """
    name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
    try:
        return base64.urlsafe_b64decode(name).decode()
    except ValueError:
        raise InputError(f"{path}: not the name of a Snakemake record") from None


def read_record(outputs: Sequence[str], folder: Path = FOLDER) -> Record:
    """The record of a job, from those of its outputs.

    Raises:
        InputError: a record is missing, unreadable, of an unfinished job, or of another job than its siblings'.
    """
    digest = hashlib.sha256()
    trees = []
    for output in outputs:
        try:
            data = record_path(output, folder).read_bytes()
            tree = json.loads(data)
            trees.append((str(tree["shellcmd"]), float(tree["starttime"]), float(tree["endtime"])))
            checksums = {name: str(text).removeprefix("sha256:") for name, text in tree["input_checksums"].items()}
        except FileNotFoundError:
            raise InputError(f"{output}: Snakemake has no record of it") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{output}: its record {record_path(output, folder)} is damaged") from None
        if tree.get("incomplete"):
            raise InputError(f"{output}: its job was not finished")
        digest.update(data)
    if len({tree[0] for tree in trees}) > 1:
        raise InputError(f"{outputs[0]}: its record and those of its siblings name different commands")
    return Record(trees[0][0], min(t[1] for t in trees), max(t[2] for t in trees), checksums, digest.hexdigest())


def settings_of(command: str) -> dict[str, Any]:
    """The config values in a command: the JSON behind ``--settings``; empty where it takes none."""
    words = shlex.split(command)
    if "--settings" not in words:
        return {}
    values: dict[str, Any] = json.loads(words[words.index("--settings") + 1])
    return values
