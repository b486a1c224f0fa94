"""LaTeX as a tool: is it here, install it where nobody needs to be asked, build a document and explain a failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from levelt.files import InputError, replacing

PROGRAMS = ["latexmk", "pdflatex", "bibtex"]
PACKAGES = ["latexmk", "texlive-latex-base", "texlive-latex-recommended", "texlive-fonts-recommended", "lmodern"]
"""Debian packages that carry the programs and the fonts of the report."""


def missing_programs() -> list[str]:
    """The LaTeX programs that are not on the PATH."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def install() -> None:
    """Make sure LaTeX is here, with the system's package manager where the user is root.

    Raises:
        InputError: LaTeX is missing and cannot be installed from here; says what to install.
    """
    missing = missing_programs()
    if not missing:
        return
    advice = (
        f"LaTeX is missing ({', '.join(missing)}): install it, for example with "
        f"`sudo apt-get install {' '.join(PACKAGES)}`, or TeX Live or MiKTeX with latexmk on other systems"
    )
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise InputError(advice)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{advice} (apt-get {command[0]} failed: {last})")


def build(source: Path, inputs: dict[str, Path], out: Path) -> None:
    """Typeset ``source`` into ``out`` (a PDF with no dates in it, so that the same input gives the same bytes).

    Args:
        source: the .tex file.
        inputs: files and folders the document needs, by the name it uses for them; copied into a scratch folder.
        out: where the PDF goes, whole or not at all.

    Raises:
        InputError: LaTeX is missing, or the document does not build; names the first error and its line.
    """
    if missing_programs():
        raise InputError(f"LaTeX is missing ({', '.join(missing_programs())}): run `levelt latex --install`")
    with tempfile.TemporaryDirectory(prefix="levelt-latex-") as scratch:
        folder = Path(scratch)
        shutil.copy(source, folder / source.name)
        for name, path in inputs.items():
            if path.is_dir():
                shutil.copytree(path, folder / name, dirs_exist_ok=True)
            else:
                shutil.copy(path, folder / name)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
        command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", source.name]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
        built = folder / source.with_suffix(".pdf").name
        if done.returncode or not built.is_file():
            raise InputError(f"{source} does not build: {_first_error(done.stdout + done.stderr)}")
        with replacing(out) as temporary:
            shutil.copyfile(built, temporary)


def _first_error(log: str) -> str:
    errors = re.findall(r"^(?:\./)?(\S+:\d+: .+|! .+)$", log, flags=re.MULTILINE)
    return errors[0] if errors else (log.strip().splitlines() or ["latexmk said nothing"])[-1]
