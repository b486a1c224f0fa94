"""Read the samples of one task from the world or from a file, check them, and report what was left out."""

from __future__ import annotations

import argparse
import logging

from levelt.config import Settings
from levelt.files import write_json, write_parquet
from levelt.prompts.samples import load_samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt samples`."""
    parser.add_argument("--settings", required=True, help="JSON with `tasks.<task>`")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument(
        "--source", help="the file read: the world's samples table (world tasks), or the file that the task names"
    )
    parser.add_argument("--out", required=True, help="samples table to write (.parquet)")
    parser.add_argument("--report", required=True, help="report to write (.json)")


def run(args: argparse.Namespace) -> None:
    """Read, check, write."""
    task = Settings.from_json(args.settings)[f"tasks.{args.task}"]
    table, report = load_samples(args.task, task, args.source)
    write_parquet(args.out, table)
    write_json(args.report, report)
    logging.getLogger(__name__).info(
        "%s: %d of %d rows used, %s", args.task, report["rows_used"], report["rows_in"], report["labels"]
    )
