"""Write every number, claim and table of the report as LaTeX macros."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import read_json, write_text
from levelt.studies.report import numbers, render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt numbers`."""
    parser.add_argument("--settings", required=True, help="JSON: study, title, seed, prompts, probes, statistics")
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="the study's tables (.csv)")
    parser.add_argument("--claims", type=Path, required=True, help="claims.json")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of every model")
    parser.add_argument("--samples", type=Path, nargs="+", required=True, help="samples report of every task")
    parser.add_argument("--example", type=Path, required=True, help="prompts of which the first sample is shown")
    parser.add_argument("--cards", type=Path, nargs="*", default=[], help="cards of the organisms (.json)")
    parser.add_argument("--out", type=Path, required=True, help="where to write the macros (.tex)")


def run(arguments: argparse.Namespace) -> None:
    """Read, format, write."""
    settings = Settings.from_json(arguments.settings)
    keys = ["study", "title", "seed", "prompts", "probes", "statistics"]
    values = numbers(
        settings={key: settings[key] for key in keys},
        tables={path.stem: pd.read_csv(path) for path in arguments.tables},
        claims=read_json(arguments.claims),
        manifests=[read_json(path) for path in arguments.manifests],
        samples={path.stem: read_json(path) for path in arguments.samples},
        example=pd.read_parquet(arguments.example),
        cards=[read_json(path) for path in arguments.cards],
    )
    write_text(arguments.out, render(values))
