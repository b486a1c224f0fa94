"""The `levelt` command: finds the module of the command named, and runs it.

A command's module is imported only when it is called, so that `levelt figure` never pays for torch
and the code a rule depends on is exactly what its command imports (ledger/code.py).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys

from levelt import __version__, commands
from levelt.files import InputError


def _summary(name: str) -> str:
    spec = importlib.util.find_spec(f"levelt.commands.{name}")
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as handle:  # noqa: PTH123 (the docstring's first line, without importing)
        return handle.readline().strip().strip('"').rstrip(".")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 2 bad input said in one sentence)."""
    argv = sys.argv[1:] if argv is None else argv
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    parser = argparse.ArgumentParser(prog="levelt", description="Where do instructions act inside a language model?")
    parser.add_argument("--version", action="version", version=f"levelt {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        subparsers.add_parser(name, help=_summary(name), add_help=False)
    known, rest = parser.parse_known_args(argv[:1]), argv[1:]
    name = known[0].command
    module = importlib.import_module(f"levelt.commands.{name}")
    command = argparse.ArgumentParser(prog=f"levelt {name}", description=module.__doc__)
    module.add_arguments(command)
    arguments = command.parse_args(rest)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("levelt").setLevel(logging.INFO)  # our progress; of libraries only their warnings
    try:
        status = module.run(arguments)
    except InputError as error:
        print(f"levelt {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:  # not about a file that someone named: a library's own
            raise
        print(f"levelt {name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return int(status or 0)


if __name__ == "__main__":
    raise SystemExit(main())
