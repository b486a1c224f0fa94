"""Tabulate the instruction vectors of all models."""

from __future__ import annotations

import argparse
from pathlib import Path

from levelt.config import Settings
from levelt.files import read_json, write_csv
from levelt.studies.scope import describe_models
from levelt.studies.vectors.tables import vector_tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt vectors_tables`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, vectors, statistics")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of every model")
    parser.add_argument("--folders", type=Path, nargs="+", required=True, help="vectors/<model> of every model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    models = describe_models([read_json(path) for path in arguments.manifests])
    folders = {folder.name: folder for folder in arguments.folders}
    tables = vector_tables(folders, models, settings.vectors, settings.statistics, settings.seed)
    for name, table in tables.items():
        write_csv(arguments.out / f"{name}.csv", table)
