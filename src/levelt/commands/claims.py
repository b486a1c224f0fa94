"""Judge the published claims on the tables of the study."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.files import write_csv, write_json
from levelt.studies.claims import judge_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt claims`."""
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="tables of the study (.csv)")
    parser.add_argument("--json", type=Path, required=True, help="claims with evidence and verdicts")
    parser.add_argument("--csv", type=Path, required=True, help="the same as a table")


def run(arguments: argparse.Namespace) -> None:
    """Read tables, judge, write."""
    tables = {path.stem: pd.read_csv(path) for path in arguments.tables}
    judged = [claim.to_json() for claim in judge_all(tables)]
    write_json(arguments.json, judged)
    write_csv(arguments.csv, pd.DataFrame(judged))
