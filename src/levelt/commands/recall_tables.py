"""Tabulate the recall study over its models: lens, knockout, tracing, heads, statistics, lists, audit."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import InputError, read_arrays, read_json, write_csv
from levelt.studies.recall import tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--settings", required=True, help="JSON with seed and statistics")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of every model")
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="folder of every model's results")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")


def run(args: argparse.Namespace) -> None:
    """Read, tabulate, write."""
    settings = Settings.from_json(args.settings)
    statistics, seed = settings["statistics"], settings["seed"]
    models = [_results(manifest, folder) for manifest, folder in zip(args.manifests, args.results, strict=True)]
    for name, make in (
        ("lens", tables.lens_table),
        ("knockout", tables.knockout_table),
        ("tracing", tables.tracing_table),
        ("heads", tables.heads_table),
        ("recall", tables.statistics_table),
        ("recall_audit", tables.audit_table),
    ):
        write_csv(args.out / f"{name}.csv", make(models, statistics, seed))
    write_csv(args.out / "recall_lists.csv", tables.lists_table(models))


def _results(manifest: Path, folder: Path) -> tables.ModelResults:
    for path in (manifest, *(folder / name for name in ("prompts.parquet", "decode.safetensors", "traces.parquet"))):
        if not path.is_file():
            raise InputError(f"{path}: no such file; `levelt recall` writes it")
    arrays, about = read_arrays(folder / "decode.safetensors")
    return tables.ModelResults(
        read_json(manifest),
        pd.read_parquet(folder / "prompts.parquet"),
        arrays,
        about,
        pd.read_parquet(folder / "traces.parquet"),
        read_json(folder / "summary.json"),
    )
