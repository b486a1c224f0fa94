"""Tabulate behaviour, agreement, information and correlations over all models and tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import read_json, write_csv
from levelt.studies.asymmetry import (
    agreement_table,
    behaviour_table,
    blocking_table,
    correlations_table,
    describe_models,
    information,
    probes_table,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt tables`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, statistics")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of every model")
    parser.add_argument("--behaviour", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument("--probes", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument("--hits", type=Path, nargs="+", required=True, help="<model>/<task>.hits.parquet, all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    models = describe_models([read_json(path) for path in arguments.manifests])
    behaviour = _behaviour(arguments.behaviour)
    probes = probes_table(pd.concat([pd.read_parquet(path) for path in arguments.probes]), models)
    hits = pd.concat([pd.read_parquet(path) for path in arguments.hits])
    seed, statistics = settings.seed, settings.statistics
    correlations = correlations_table(behaviour, hits, information(probes), statistics, seed)
    write_csv(arguments.out / "behaviour.csv", behaviour_table(behaviour, models, statistics, seed))
    write_csv(arguments.out / "agreement.csv", agreement_table(behaviour, models, statistics, seed))
    write_csv(arguments.out / "probes.csv", probes)
    write_csv(arguments.out / "blocking.csv", blocking_table(behaviour, hits, models, statistics, seed))
    write_csv(arguments.out / "correlations.csv", correlations)


def _behaviour(paths: list[Path]) -> pd.DataFrame:
    """Behaviour rows of all models and tasks, which the paths name: <model>/<task>.parquet."""
    frames = [pd.read_parquet(path).assign(model=path.parent.name, task=path.stem) for path in paths]
    return pd.concat(frames, ignore_index=True)
