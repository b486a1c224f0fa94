"""Make the prompts of one task for one tokenizer: text, token ids, token groups."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.files import InputError, read_json, write_parquet
from levelt.prompts.render import load_tokenizer, render_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt prompts`."""
    parser.add_argument(
        "--settings", required=True, help="JSON with `seed`, `prompts`, `templates.<name>`, `tasks.<task>`"
    )
    parser.add_argument("--tokenizer", required=True, help="manifest.json of a model, or a tokenizer's folder")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--samples", required=True, help="samples table of the task (.parquet)")
    parser.add_argument("--out", required=True, help="prompts table to write (.parquet)")


def run(args: argparse.Namespace) -> None:
    """Read, render, write."""
    settings = Settings.from_json(args.settings)
    tokenizer = Path(args.tokenizer)
    if not Path(args.samples).is_file():
        raise InputError(f"{args.samples}: no such file")
    if not tokenizer.exists():
        raise InputError(f"{tokenizer}: no such file or folder")
    if tokenizer.is_dir():
        manifest = {"id": tokenizer.name, "path": str(tokenizer), "revision": None}
    else:
        manifest = read_json(tokenizer)
    template = settings["prompts"].template
    table = render_task(
        pd.read_parquet(args.samples),
        settings[f"tasks.{args.task}"],
        settings["prompts"],
        {template: settings[f"templates.{template}"]},
        load_tokenizer(manifest),
        seed=settings["seed"],
        name=args.task,
        model=str(manifest["id"]),
    )
    write_parquet(args.out, table)
    logging.getLogger(__name__).info(
        "%s: %d prompts, longest %d tokens", args.task, len(table), table["input_ids"].map(len).max()
    )
