"""Check that LaTeX is here, or install it."""

from __future__ import annotations

import argparse

from levelt.files import InputError
from levelt.typesetting import install, missing_programs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt latex`."""
    parser.add_argument("--install", action="store_true", help="install it with apt-get, as root and without questions")


def run(arguments: argparse.Namespace) -> None:
    """Check or install; the status is 2 and one sentence says what to do when LaTeX is missing."""
    if arguments.install:
        install()
    elif missing_programs():
        raise InputError(f"LaTeX is missing ({', '.join(missing_programs())}): run `levelt latex --install` as root")
