"""Tabulate the controls of the probes over models and tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import write_csv
from levelt.studies.controls_table import controls_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt controls`."""
    parser.add_argument("--settings", required=True, help="JSON with the key statistics")
    parser.add_argument("--controls", type=Path, nargs="+", required=True, help="<model>/<task>.controls.parquet, all")
    parser.add_argument("--probes", type=Path, required=True, help="the study's table of probes (.csv)")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table (.csv)")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    frames = (
        pd.read_parquet(path).assign(model=path.parent.name, task=path.name.removesuffix(".controls.parquet"))
        for path in arguments.controls
    )
    table = controls_table(frames, pd.read_csv(arguments.probes), settings.statistics.control_tasks)
    write_csv(arguments.out, table)
