"""Collect the contrastive tasks of a study: queries with their answers, instructions with their wordings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from levelt.config import ContrastFile, Settings
from levelt.files import InputError, write_json, write_parquet
from levelt.studies.vectors.contrasts import from_file, from_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt contrasts`."""
    parser.add_argument("--settings", required=True, help="JSON with the key vectors.tasks")
    parser.add_argument("--world", type=Path, nargs="*", default=[], help="the world's contrasts.parquet, if needed")
    parser.add_argument("--queries", type=Path, required=True, help="where to write queries and answers (.parquet)")
    parser.add_argument("--instructions", type=Path, required=True, help="where to write wordings (.parquet)")
    parser.add_argument("--report", type=Path, required=True, help="where to write what was left out (.json)")


def run(arguments: argparse.Namespace) -> None:
    """Read every task, write both tables and the report."""
    settings = Settings.from_json(arguments.settings)
    pairs = [pd.read_parquet(path) for path in arguments.world]
    queries, instructions = [], []
    report: dict[str, Any] = {}
    for task, contrast in settings["vectors.tasks"].items():
        source = contrast.source
        if isinstance(source, ContrastFile):
            found, worded, report[task] = from_file(task, source)
        elif pairs:
            found, worded = from_world(pairs[0], task, source)
            report[task] = {"rows": len(found) // 2, "kept": len(found) // 2}
        else:
            raise InputError(f"vectors.tasks.{task} needs the world's contrasts; give them with --world")
        queries.append(found)
        instructions.append(worded)
    write_parquet(arguments.queries, pd.concat(queries, ignore_index=True))
    write_parquet(arguments.instructions, pd.concat(instructions, ignore_index=True))
    write_json(arguments.report, report)
