"""Write the synthetic world's plain text, which organisms are trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from levelt.config import Settings
from levelt.files import write_parquet
from levelt.world.corpus import plain_text
from levelt.world.tasks import Bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--settings (seed, world), --out (a file)."""
    parser.add_argument("--settings", required=True, help="JSON with the sections seed and world")
    parser.add_argument("--out", required=True, type=Path, help="Parquet file of documents")


def run(args: argparse.Namespace) -> None:
    """Write the documents."""
    settings = Settings.from_json(args.settings)
    world = settings.world
    bank = Bank(world.heldout, tuple(world.tasks))
    write_parquet(args.out, plain_text(settings.seed, bank, world.documents, world.subjects), quick=True)
