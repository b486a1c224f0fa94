"""Tabulate behaviour, information and every comparison over all models and tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import read_json, write_csv
from levelt.studies.asymmetry import comparisons
from levelt.studies.evidence import Evidence, collect
from levelt.studies.scope import describe_models

BEHAVIOUR = ["prompt_id", "sample_id", "pair_id", "condition", "template", "polarity", "label", "answer", "unasked"]
BEHAVIOUR += ["exact_match", "answered", "preferred"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt tables`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, statistics")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of every model")
    parser.add_argument("--behaviour", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all")
    parser.add_argument(
        "--hits", type=Path, nargs="+", required=True, help="<model>/<task>.parquet, all: out-of-fold hits"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")


def run(arguments: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(arguments.settings)
    for name, table in comparisons(read_evidence(arguments), settings.statistics, settings.seed).items():
        write_csv(arguments.out / f"{name}.csv", table)


def read_evidence(arguments: argparse.Namespace) -> Evidence:
    """Behaviour and hits of every model and task, as arrays over the samples of a task."""
    models = describe_models([read_json(path) for path in arguments.manifests])
    behaviour = (
        pd.read_parquet(path, columns=BEHAVIOUR).assign(model=path.parent.name, task=path.stem)
        for path in arguments.behaviour
    )
    return collect(models, behaviour, (pd.read_parquet(path) for path in arguments.hits))
