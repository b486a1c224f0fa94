"""Tabulate what is asked layer by layer, over all models and tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.commands import tables
from levelt.config import Settings
from levelt.files import write_csv
from levelt.studies.asymmetry import by_layer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt layer_tables`."""
    tables.add_arguments(parser)
    parser.add_argument("--probes", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    evidence = tables.read_evidence(arguments)
    probes = pd.concat([pd.read_parquet(path) for path in arguments.probes], ignore_index=True)
    for name, table in by_layer(evidence, probes, settings.statistics, settings.seed).items():
        write_csv(arguments.out / f"{name}.csv", table)
