"""Make the prompts of one task for one model: text, token ids, token groups."""

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
    parser.add_argument("--model-manifest", required=True, help="manifest.json of the model")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--samples", required=True, help="samples table of the task (.parquet)")
    parser.add_argument("--out", required=True, help="prompts table to write (.parquet)")


def run(args: argparse.Namespace) -> None:
    """Read, render, write."""
    settings = Settings.from_json(args.settings)
    for path in (args.samples, args.model_manifest):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
    manifest = read_json(args.model_manifest)
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
