"""Write the conversations of instruction tuning and the preference pairs, in the layouts of the study's templates."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from levelt.config import Settings
from levelt.files import write_parquet
from levelt.organisms.instructions import conversations
from levelt.organisms.preferences import preferences
from levelt.world.tasks import Bank

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--settings (seed, world, organisms.templates, templates.NAME for each of them), --out, --preferences."""
    parser.add_argument(
        "--settings", required=True, help="JSON with seed, world, organisms.templates and templates.NAME of each"
    )
    parser.add_argument("--out", required=True, type=Path, help="Parquet file of conversations")
    parser.add_argument("--preferences", required=True, type=Path, help="Parquet file of preference pairs")


def run(args: argparse.Namespace) -> None:
    """Write the two Parquet files."""
    settings = Settings.from_json(args.settings)
    world = settings.world
    templates = {name: settings[f"templates.{name}"] for name in settings["organisms.templates"]}
    bank = Bank(world.heldout, tuple(world.tasks))
    table = conversations(settings.seed, bank, world.instructions, world.subjects, templates)
    write_parquet(args.out, table, quick=True)
    pairs = preferences(settings.seed, bank, world.preferences, world.subjects, templates)
    write_parquet(args.preferences, pairs, quick=True)
    log.info("%d conversations: %s", len(table), table["kind"].value_counts().to_dict())
    log.info("%d preference pairs: %s", len(pairs), pairs["kind"].value_counts().to_dict())
