"""Check a config file, or write the generated schema and reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from levelt.config import load, reference, schema
from levelt.files import InputError, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt config`."""
    parser.add_argument("action", choices=["check", "schema", "reference"])
    parser.add_argument("file", type=Path, nargs="?", help="config file to check")
    parser.add_argument("--out", type=Path, help="where to write (default: the terminal)")


def run(arguments: argparse.Namespace) -> None:
    """Check, or print or write what is generated from the config's types."""
    if arguments.action == "check":
        if arguments.file is None:
            raise InputError("check needs a config file: `levelt config check my.yaml`")
        study = load(arguments.file)
        print(f"{arguments.file}: study {study.study}, {len(study.model_ids)} models, {len(study.tasks)} tasks")
        return
    text = schema() if arguments.action == "schema" else reference()
    if arguments.out:
        write_text(arguments.out, text)
    else:
        print(text, end="")
