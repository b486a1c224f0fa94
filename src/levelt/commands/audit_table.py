"""Tabulate the methods audit over models and tasks: each number, and the correlations."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.commands.tables import BEHAVIOUR
from levelt.config import Settings
from levelt.files import read_json, write_csv
from levelt.studies.audit import audit_table
from levelt.studies.audit_correlations import audit_correlations, second_options
from levelt.studies.estimates import Resampling
from levelt.studies.evidence import collect
from levelt.studies.scope import describe_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt audit_table`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, statistics")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of each audited model")
    parser.add_argument("--behaviour", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument("--hits", type=Path, nargs="+", required=True, help="<model>/<task>.hits.parquet, all")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table (.csv)")
    parser.add_argument("--correlations", type=Path, required=True, help="where to write the correlations (.csv)")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    statistics = settings.statistics
    table = audit_table((pd.read_parquet(path) for path in arguments.rows), statistics.control_tasks)
    models = describe_models([read_json(path) for path in arguments.manifests])
    hits = [pd.read_parquet(path) for path in arguments.hits]
    behaviour = (
        pd.read_parquet(path, columns=BEHAVIOUR).assign(model=path.parent.name, task=path.stem)
        for path in arguments.behaviour
    )
    evidence = collect(models, behaviour, hits)
    resampling = Resampling(evidence.samples, statistics, settings.seed)
    second = second_options(evidence, hits)
    write_csv(arguments.out, table)
    write_csv(arguments.correlations, audit_correlations(evidence, second, resampling, statistics.control_tasks))
