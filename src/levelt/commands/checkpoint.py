"""Describe a checkpoint that already exists: check it and write its manifest."""

from __future__ import annotations

import argparse

from levelt.config import Settings
from levelt.files import write_json
from levelt.models.loading import checkpoint_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--settings", required=True, help="JSON with seed and checkpoints.<id>")
    parser.add_argument("--id", required=True, help="the checkpoint's id in the config")
    parser.add_argument("--out", required=True, help="manifest.json to write")


def run(args: argparse.Namespace) -> None:
    """Write the manifest of one checkpoint of the config."""
    settings = Settings.from_json(args.settings)
    write_json(args.out, checkpoint_manifest(args.id, settings[f"checkpoints.{args.id}"], settings["seed"]))
