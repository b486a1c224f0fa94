"""What Snakemake and DVC say about the working directory, asked through their own commands. Nothing is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from levelt.files import InputError
from levelt.ledger.records import LOCKS


@dataclass(frozen=True)
class Plan:
    """What `snakemake --dry-run` would do: jobs by rule, and whether every record it needs is here."""

    jobs: Mapping[str, int]
    records_missing: bool = False

    @property
    def clean(self) -> bool:
        """Nothing to be done, and Snakemake could know."""
        return not self.jobs and not self.records_missing


def snakemake_command(config: str, *arguments: str) -> list[str]:
    """A Snakemake command in this Python's environment, for one study."""
    return [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", config, *arguments]


def dry_run(config: str, targets: Sequence[str] = ()) -> Plan:
    """Ask Snakemake what it would run.

    Raises:
        InputError: it cannot plan at all; the message is Snakemake's, from its first line that names an error.
    """
    done = subprocess.run(
        snakemake_command(config, "--dry-run", *(["--", *targets] if targets else [])), capture_output=True, text=True
    )
    said = done.stderr + done.stdout  # a dry run talks on stdout; what is said first there may be on stderr
    if done.returncode:
        lines = said.split("\n")
        first = next((n for n, line in enumerate(lines) if re.search(r"Error|Exception", line)), 0)
        raise InputError(f"snakemake cannot plan {config}: {' '.join(' '.join(lines[first:]).split()) or 'no message'}")
    missing = re.search(r"(missing|outdated) provenance/metadata", said) is not None
    if "Nothing to be done" in said:
        return Plan({}, missing)
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total ", said, re.MULTILINE | re.DOTALL)
    if table is None:
        raise InputError(f"snakemake's plan for {config} was not understood (no job table)")
    jobs = {name: int(count) for name, count in re.findall(r"^(\S+) +(\d+)$", table.group(1), re.MULTILINE)}
    return Plan(jobs, missing)


def running() -> bool:
    """Whether Snakemake holds a lock on this directory: it runs, or was killed and needs `snakemake --unlock`."""
    return LOCKS.is_dir() and any(LOCKS.iterdir())


def dvc_command(*arguments: str) -> list[str]:
    """A DVC command in this Python's environment; it waits for another one's lock."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]


def dvc_environment() -> Mapping[str, str]:
    """The environment of DVC commands: nothing is reported to anyone."""
    return {**os.environ, "DVC_NO_ANALYTICS": "1"}


def dvc_outs() -> dict[str, bool]:
    """Folder -> whether DVC stores it (else it only knows its hash), from dvc.yaml."""
    tree = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    outs: dict[str, bool] = {}
    for stage in tree["stages"].values():
        for out in stage["outs"]:
            for folder, options in out.items():
                outs[folder] = options.get("cache", True)
    return outs


def dvc_changes() -> list[tuple[str, str, str]]:
    """What `dvc status` finds: (stage, path, what is the matter). Folders that are never stored may be absent.

    Raises:
        InputError: DVC fails; the message is its own.
    """
    done = subprocess.run(dvc_command("status", "--json"), capture_output=True, text=True, env=dvc_environment())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"dvc status fails: {last}")
    tree: Mapping[str, Any] = json.loads(done.stdout)
    stored = dvc_outs()
    found = []
    for stage, changes in tree.items():
        for change in changes:
            if not isinstance(change, Mapping):
                found.append((stage, "dvc.yaml", str(change)))
                continue
            for paths in change.values():
                found += [(stage, path, what) for path, what in _flat(paths)]
    return [(s, path, what) for s, path, what in found if what != "deleted" or stored.get(path, True)]


def _flat(paths: Mapping[str, Any]) -> list[tuple[str, str]]:
    """DVC nests parameters by file: {file: {key: what}}."""
    flat = []
    for path, what in paths.items():
        if isinstance(what, Mapping):
            flat += [(f"{path}: {key}", str(value)) for key, value in what.items()]
        else:
            flat.append((path, str(what)))
    return flat
