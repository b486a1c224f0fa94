"""Tabulate the methods audit over models and tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import write_csv
from levelt.studies.audit import audit_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt audit_table`."""
    parser.add_argument("--settings", required=True, help="JSON with the key statistics")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table (.csv)")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    controls = Settings.from_json(arguments.settings).statistics.control_tasks
    write_csv(arguments.out, audit_table((pd.read_parquet(path) for path in arguments.rows), controls))
