"""Is what `levelt ledger trace` says a figure rests on what the workflow did?

`python -m benchmarks.trace_log run.log blocking selection training` takes the output of a whole `snakemake
--printshellcmds` (`--dry-run --forceall` prints the same commands without running them) and looks up the command of
every job in the traces of the figures. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from levelt.config import load
from levelt.ledger.book import read_book
from levelt.ledger.trace import chain, resolve


def main() -> None:
    """Trace, look up, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="what snakemake --printshellcmds wrote")
    parser.add_argument("figures", nargs="+")
    parser.add_argument("--config", default="config/organisms.yaml")
    arguments = parser.parse_args()
    said = " ".join(arguments.log.read_text(encoding="utf-8").split())
    book = read_book(load(arguments.config).study)
    result = {}
    for figure in arguments.figures:
        commands = [" ".join(entry.command.split()) for entry in chain(book, resolve(book, figure))]
        lost = [command for command in commands if command not in said]
        print(*(f"{figure}: not in the log: {command[:200]}" for command in lost), sep="\n", end="\n" if lost else "")
        result[figure] = {"jobs": len(commands), "in_the_log": len(commands) - len(lost)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
