"""Keep the ledger: derive dvc.yaml from the rules, or record a finished run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml

from levelt.config import load
from levelt.files import InputError, write_text
from levelt.ledger.graph import read_jobs
from levelt.ledger.stages import render, stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt ledger`."""
    parser.add_argument("action", choices=["stages", "commit"], help="stages: write dvc.yaml; commit: record hashes")
    parser.add_argument("--config", default="config/organisms.yaml", help="the study that is recorded")
    parser.add_argument("--check", action="store_true", help="stages: only say whether dvc.yaml is up to date")


def run(arguments: argparse.Namespace) -> int:
    """Write or check dvc.yaml; or, after a complete run, let DVC hash what was made."""
    if arguments.action == "commit":
        return _commit(arguments.config)
    study = load(arguments.config)
    tree = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
    jobs = read_jobs(Path("Snakefile"), Path(arguments.config))
    text = render(stages(jobs, study.study, arguments.config, tree))
    target = Path("dvc.yaml")
    if not arguments.check:
        write_text(target, text)
    elif not target.is_file() or target.read_text(encoding="utf-8") != text:
        raise InputError("dvc.yaml does not match the rules: run `levelt ledger stages`")
    return 0


def _commit(config: str) -> int:
    if "DVC_STAGE" in os.environ:
        raise InputError("`levelt ledger commit` was called from inside a DVC stage; call it after the run")
    plan = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--configfile", config]
    done = subprocess.run(plan, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode or "Nothing to be done" not in said:
        raise InputError(
            f"the run is not complete (snakemake -n has work to do): run `snakemake --cores all --configfile {config}`"
        )
    # --no-relink leaves file times alone; the user may be running another dvc command, so wait for its lock
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--force", "--no-relink"]
    return subprocess.run(command).returncode
