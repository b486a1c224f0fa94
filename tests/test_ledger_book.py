"""The ledger on a toy study: pulled is up to date by content, every change is found, nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from levelt.files import read_json
from levelt.ledger.book import Book, read_book
from levelt.ledger.recompute import compare
from levelt.ledger.records import output_of, record_path
from levelt.ledger.trace import chain, origin
from toy import CONFIG, Toy, environment, make_toy

NOTHING = "Nothing to be done"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy study, run, recorded and published. Tests do not change it."""
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def toy(published: Toy, tmp_path: Path) -> Toy:
    """A copy of it, file times included, to change at will."""
    shutil.copytree(published.path, tmp_path / "toy")
    return Toy(tmp_path / "toy")


@pytest.fixture
def book(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    monkeypatch.chdir(toy.path)
    yield read_book("toy")


# --- up to date by content -------------------------------------------------------------------------------------------


def test_five_clones_with_shuffled_file_times(published: Toy, tmp_path: Path) -> None:
    for number in range(5):
        clone = published.clone(tmp_path / f"clone{number}")
        clone.dvc("pull")
        clone.shuffle_times(number)
        assert NOTHING in clone.snakemake("--dry-run"), number
    assert clone.findings() == {}
    assert not (clone.path / "data/toy/activations").exists(), "never stored"
    # and it is content that was judged, not luck: another seed plans everything that depends on it
    config = clone.path / CONFIG
    config.write_text(config.read_text().replace("seed: 1", "seed: 2"))
    planned = clone.snakemake("--dry-run")
    assert {"models", "read", "tables", "figure", "report"} <= set(re.findall(r"^(\w+) +\d+$", planned, re.MULTILINE))


def test_one_figure_is_pulled_alone(published: Toy, tmp_path: Path) -> None:
    clone = published.clone(tmp_path / "clone")
    clone.dvc("pull", "figures/toy/line.pdf", ".snakemake/metadata")
    assert [path.name for path in (clone.path / "figures/toy").iterdir()] == ["line.pdf"]
    assert not (clone.path / "data/toy").exists()
    clone.shuffle_times(1)
    assert NOTHING in clone.snakemake("--dry-run", "figures/toy/line.pdf")
    assert clone.findings("--partial") == {}
    missing = clone.findings()
    assert "is missing" in missing["data/toy/models"] and "is missing" in missing["figures/toy/line.png"]
    (clone.path / "figures/toy/line.pdf").write_bytes(b"%PDF")
    assert "figures/toy/line.pdf" in clone.findings("--partial")


# --- tampering: every kind of artifact, by name ----------------------------------------------------------------------

ARTIFACTS = {
    "checkpoint": "data/toy/models/m/model.safetensors",
    "activations": "data/toy/activations/m/a.safetensors",
    "activations manifest": "data/toy/activations/m/manifest.json",
    "behaviour": "data/toy/behaviour/m.parquet",
    "table": "data/toy/tables/line.csv",
    "claims": "data/toy/tables/claims.json",
    "numbers": "paper/toy/numbers.tex",
    "figure": "figures/toy/line.pdf",
    "picture": "figures/toy/line.png",
    "report": "paper/toy/report.pdf",
    "raw file": "raw.csv",
    "code": "src/make.py",
    "prose": "paper/report.tex",
}


def flip(path: Path, keep_time: bool) -> None:
    """Change the last byte, in place; the file keeps its size, and its time if asked."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [True, False], ids=["old file times", "new file times"])
def test_one_byte_anywhere_is_found(toy: Toy, keep_time: bool) -> None:
    record = record_path("figures/toy/line.pdf", Path(".snakemake/metadata"))
    remote = max((toy.path / "data/remote/files/md5").glob("??/*"), key=lambda path: path.stat().st_size)
    for path in [*ARTIFACTS.values(), str(record), str(remote.relative_to(toy.path))]:
        flip(toy.path / path, keep_time)
    found = toy.findings()
    assert [kind for kind, path in ARTIFACTS.items() if path not in found] == []
    assert "not what its name says" in found[str(remote.relative_to(toy.path))]
    assert "record" in found["figures/toy/line.pdf"] and "bytes" in found["figures/toy/line.pdf"]
    assert "code edited" in found["src/make.py"]
    untouched = set(read_json(toy.path / "docs/provenance/toy.json")["files"]) - set(ARTIFACTS.values())
    assert not untouched & set(found), "the twin: what was not changed is not named"


def test_deleted_objects_of_the_remote_are_found(toy: Toy) -> None:
    """One, or all: that the cache has them does not help the next clone."""
    objects = [path for path in (toy.path / "data/remote/files/md5").glob("??/*") if path.suffix != ".dir"]
    objects[0].unlink()
    assert list(toy.findings()) == [str(objects[0].relative_to(toy.path))]
    shutil.rmtree(toy.path / "data/remote")
    assert len([path for path in toy.findings() if path.startswith("data/remote")]) >= 3
    toy.must("git", "checkout", "data/remote")
    assert toy.findings() == {}


def test_a_number_edited_by_hand_is_found(toy: Toy, book: Book) -> None:
    """In the generated file, in the prose, and in a picture that shows other numbers than its CSV."""
    from levelt.ledger.numbers import number_findings, typed_numbers

    here = dict(book.files)
    assert list(number_findings(book, here)) == []
    macros = toy.path / "paper/toy/numbers.tex"
    right = macros.read_text()
    for old, new in ((r": 0\.\d\d", ": 0.01"), ("1.00]", "0.90]"), ("supported}\\.", "undecided}."), (r"\{1\}", "{2}")):
        macros.write_text(re.sub(old, new, right))
        assert [path for path, *_ in number_findings(book, here)] == ["paper/toy/numbers.tex"], old
    macros.write_text(right)
    text = "\\begin{document}\nIt is 0.93, and 12\\,\\%, in 3 of 4 models, $-0.4$.\n\\vspace{-1.5cm} {0.5\\textwidth}\n"
    assert [number for _, number in typed_numbers(text)] == ["0.93", "12", "0.4"]
    (toy.path / "figures/toy/line.csv").write_text("x,y\n1,0.9\n")
    found = toy.findings()
    assert "levelt:line:" in found["figures/toy/line.pdf"] and "levelt:line:" in found["figures/toy/line.png"]


def test_code_edited_without_running_plans_its_consequences(toy: Toy) -> None:
    source = toy.path / "src/make.py"
    source.write_text(source.read_text().replace("A picture of nothing", "A picture of something"))
    found = toy.findings()
    assert "code edited since the run" in found["src/make.py"]
    assert "figure" in found["Snakefile"] and "report" in found["Snakefile"]
    toy.snakemake()
    assert toy.ledger("commit").returncode == 0
    assert toy.findings() == {}


def test_a_library_upgrade_is_found_where_it_matters(toy: Toy, book: Book) -> None:
    lock = toy.path / "requirements.lock"
    before = lock.read_text()
    lock.write_text(re.sub(r"^(pytest|dvc)==.*$", r"\1==99.0", before, flags=re.MULTILINE))
    assert toy.findings() == {}, "no result depends on these"
    (toy.path / "src/make.py").write_text((toy.path / "src/make.py").read_text() + "\nimport numpy\n")
    toy.snakemake()
    assert toy.ledger("commit").returncode == 0
    assert toy.findings() == {}
    lock.write_text(re.sub(r"^numpy==.*$", "numpy==99.0", before, flags=re.MULTILINE))
    assert re.search(r"pins numpy 99\.0, but claims figure models report ran with", toy.findings()["requirements.lock"])


# --- commit: refuses, repeats, survives ------------------------------------------------------------------------------


def test_committing_twice_writes_the_same_bytes(toy: Toy) -> None:
    paths = [toy.path / "dvc.lock", toy.path / "docs/provenance/toy.json"]
    before = [path.read_bytes() for path in paths]
    times = {p: p.stat().st_mtime_ns for p in toy.path.rglob("*") if p.is_file() and "data/toy" in str(p)}
    assert toy.ledger("commit").returncode == 0
    assert [path.read_bytes() for path in paths] == before
    assert all(path.stat().st_mtime_ns == moment for path, moment in times.items()), "file times are left alone"


def test_commit_refuses_what_is_not_true(toy: Toy) -> None:
    lock = (toy.path / "dvc.lock").read_bytes()

    def refused(*arguments: str) -> str:
        done = toy.ledger("commit", *arguments)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert (toy.path / "dvc.lock").read_bytes() == lock
        return done.stderr

    table, picture = toy.path / "data/toy/tables/line.csv", toy.path / "figures/toy/line.png"
    flip(table, keep_time=True)  # Snakemake cannot see this
    assert "data/toy/tables/line.csv is not what" in refused()
    flip(table, keep_time=True)
    flip(picture, keep_time=False)  # nor this: nothing is made from it
    assert "figures/toy/line.png was changed by hand" in refused()
    flip(picture, keep_time=False)
    left = toy.path / "figures/toy/old.pdf"
    left.write_bytes(b"%PDF")
    assert "figures/toy/old.pdf" in refused()
    (toy.path / ".snakemake/locks").mkdir(exist_ok=True)
    (toy.path / ".snakemake/locks/0.input.lock").write_text("x")
    assert "snakemake is at work here" in refused()
    shutil.rmtree(toy.path / ".snakemake/locks")
    numbers = toy.path / "figures/toy/line.csv"
    kept = numbers.read_bytes()
    numbers.unlink()  # Snakemake does not miss it: the picture drawn beside it is there
    assert "figures/toy/line.csv is missing" in refused("--prune")
    numbers.write_bytes(kept)
    (toy.path / "paper/toy/report.pdf").unlink()
    assert "the run is not complete" in refused()
    toy.snakemake()
    assert toy.ledger("commit", "--prune").returncode == 0
    assert not left.exists() and toy.findings() == {}


def test_commit_killed_at_five_moments(toy: Toy) -> None:
    """Whenever it is killed, the next commit completes, and dvc.lock is never left in pieces."""
    config = toy.path / CONFIG
    config.write_text(config.read_text().replace("seed: 1", "seed: 2"))
    toy.snakemake()
    command = [sys.executable, "-m", "levelt.cli", "ledger", "commit", "--config", CONFIG]
    old = (toy.path / "dvc.lock").read_bytes()
    kept = toy.path / ".dvc/tmp/levelt-commit-dvc.lock"
    seen = set()
    for moment in range(5):
        process = subprocess.Popen(
            command, cwd=toy.path, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
        )
        if moment < 3:
            time.sleep(0.4 + 0.4 * moment)
        else:  # while dvc works: as soon as its copy of the lock is there, or a little later
            while process.poll() is None and not kept.is_file():
                time.sleep(0.005)
            time.sleep(0.3 * (moment - 3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen.add(kept.is_file())
        if kept.is_file():
            assert kept.read_bytes() == old
        else:
            assert (toy.path / "dvc.lock").read_bytes() == old
    assert seen == {False, True}, "both before and while DVC was at work"
    if kept.is_file():
        assert "interrupted" in toy.findings()["dvc.lock"]
    assert toy.ledger("commit").returncode == 0
    assert toy.findings() == {}
    assert (toy.path / "dvc.lock").read_bytes() != old


def test_what_changes_while_it_is_recorded_is_refused(toy: Toy) -> None:
    """A run started while dvc works: dvc.lock and the book would name different bytes. Neither is written."""
    config = toy.path / CONFIG
    config.write_text(config.read_text().replace("seed: 1", "seed: 2"))
    toy.snakemake()
    written = [toy.path / "dvc.lock", toy.path / "docs/provenance/toy.json"]
    before = [path.read_bytes() for path in written]
    kept = toy.path / ".dvc/tmp/levelt-commit-dvc.lock"
    command = [sys.executable, "-m", "levelt.cli", "ledger", "commit", "--config", CONFIG]
    table, locks = toy.path / "data/toy/tables/line.csv", toy.path / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    for change in (lambda: os.utime(table), lambda: (locks / "0.input.lock").write_text("x")):
        process = subprocess.Popen(command, cwd=toy.path, env=environment(), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not kept.is_file():
            time.sleep(0.005)
        change()
        assert "files changed while they were recorded" in process.communicate()[1]
        assert process.returncode == 2 and not kept.exists()
        assert [path.read_bytes() for path in written] == before
    shutil.rmtree(locks)
    assert toy.ledger("commit").returncode == 0 and toy.findings() == {}


def test_an_interrupted_commit_is_not_published(toy: Toy) -> None:
    """Killed behind dvc's part: dvc.lock is new and whole, the book is old."""
    kept = toy.path / ".dvc/tmp/levelt-commit-dvc.lock"
    shutil.copyfile(toy.path / "dvc.lock", kept)
    done = toy.ledger("publish")
    assert done.returncode == 2 and "a commit was interrupted" in done.stderr
    assert toy.ledger("commit").returncode == 0
    assert toy.ledger("publish").returncode == 0


def test_a_lock_pulled_after_an_interruption_stays(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """git has a newer dvc.lock than the copy that a killed commit left; its twin, not in git, is undone."""
    from levelt.ledger.commit import restore

    monkeypatch.chdir(toy.path)
    kept, lock = Path(".dvc/tmp/levelt-commit-dvc.lock"), Path("dvc.lock")
    pulled = lock.read_bytes()
    kept.write_bytes(b"older")
    assert restore() and lock.read_bytes() == pulled and not kept.exists()
    kept.write_bytes(b"older")
    lock.write_bytes(pulled[:100])
    assert restore() and lock.read_bytes() == b"older" and not kept.exists()


def test_edited_inputs_are_named_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder of a bigger repository, and with letters beyond ASCII in their names."""
    from levelt.ledger.book import _revision

    folder = tmp_path / "big/study"
    folder.mkdir(parents=True)
    names = ["plain.csv", "été.csv", "new é.csv", "same.csv"]
    toy = Toy(tmp_path / "big")
    toy.must("git", "init", "-q", ".")
    for name in names:
        if not name.startswith("new"):
            (folder / name).write_text("1")
    toy.save()
    for name in names[:3]:
        (folder / name).write_text("2")
    monkeypatch.chdir(folder)
    assert _revision(names)[1] == tuple(sorted(names[:3]))


def test_two_commits_at_once(toy: Toy) -> None:
    command = [sys.executable, "-m", "levelt.cli", "ledger", "commit", "--config", CONFIG]
    both = [
        subprocess.Popen(command, cwd=toy.path, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    for process, text in zip(both, said, strict=True):
        assert process.returncode == 0 or (process.returncode == 2 and "another `levelt ledger commit`" in text), text
    assert toy.findings() == {}


# --- trace, site, recompute ------------------------------------------------------------------------------------------


def test_trace_says_what_the_run_did(toy: Toy, book: Book) -> None:
    """Against the workflow's own log of shell commands, from a run of its own."""
    log = toy.snakemake("--forceall", "--printshellcmds")
    assert toy.ledger("commit").returncode == 0
    done = toy.ledger("trace", "line", "--json")
    tree = json.loads(done.stdout)
    assert [job["rule"] for job in tree["jobs"]] == ["figure", "tables", "read", "models"]
    assert all(job["command"] in log for job in tree["jobs"])
    assert all(job["where"] == "computed here" for job in tree["jobs"])
    assert tree["seeds"] == [1] and tree["settings"] == {"seed": 1}
    assert [file["path"] for file in tree["raw"]] == ["raw.csv"]
    assert tree["raw"][0]["origin"].startswith("this repository")
    assert [file["path"] for file in tree["code"]] == ["src/make.py"]
    assert {file["here"] for job in tree["jobs"] for file in job["outputs"]} == {"same"}
    code = tree["mark"].rsplit(":", 1)[1]
    for name in (code, tree["mark"], "figures/toy/line.png", str(toy.path / "figures/toy/line.pdf")):
        assert code in toy.ledger("trace", name).stdout, name
    assert "other numbers" in toy.ledger("trace", "0123456789").stderr
    assert chain(book, "paper/toy/report.pdf")[0].rule == "report"


def test_the_origin_of_a_raw_file(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.path)
    assert origin("raw.csv")["licence"] == "that of this repository"
    Path("raw.csv.dvc").write_text(
        "deps:\n- path: https://example.org/raw.csv\n  etag: e1\nmeta: {licence: CC-BY-4.0}\n"
    )
    assert origin("raw.csv") == {"origin": "https://example.org/raw.csv e1", "licence": "CC-BY-4.0"}
    Path("other.csv").write_text("x")
    assert origin("other.csv") == {"origin": "not stated", "licence": "not stated"}


def test_crate_has_every_job_and_file(book: Book, toy: Toy) -> None:
    """Whether it is valid against its profiles is judged by roc-validator: test_crate_oracle.py."""
    from levelt.ledger.crate import write_crate

    graph = read_json(write_crate(book, toy.path / "crate") / "ro-crate-metadata.json")["@graph"]
    jobs = [entity for entity in graph if entity["@id"].startswith("#job-")]
    assert sorted(job["description"] for job in jobs) == sorted(entry.command for entry in book.jobs)
    hashes = {entity["@id"]: entity["sha256"] for entity in graph if "sha256" in entity}
    assert hashes == {path: digest for path, (digest, _) in book.files.items()}
    assert all((toy.path / "crate" / path).is_file() for path in book.files)


def test_trace_needs_no_pull(published: Toy, tmp_path: Path) -> None:
    clone = published.clone(tmp_path / "clone")
    tree = json.loads(clone.ledger("trace", "line", "--json").stdout)
    assert {job["where"] for job in tree["jobs"]} == {"absent"} and tree["artifact"]["here"] == "absent"
    clone.dvc("pull")
    tree = json.loads(clone.ledger("trace", "line", "--json").stdout)
    assert {job["where"] for job in tree["jobs"]} == {"pulled"}


def test_the_site_is_the_same_again(toy: Toy) -> None:
    index = toy.path / toy.ledger("site").stdout.strip()
    pages = {path: path.read_bytes() for path in index.parent.iterdir() if path.is_file()}
    toy.ledger("site")
    assert pages == {path: path.read_bytes() for path in index.parent.iterdir() if path.is_file()}


def test_recompute_compares(toy: Toy) -> None:
    done = toy.ledger("verify", "--recompute", "--figure", "line", "--cores", "1")
    assert done.returncode == 0 and "0 close, 0 different" in done.stdout, done.stdout + done.stderr
    table = toy.path / "data/toy/tables/line.csv"
    table.write_text(table.read_text().replace("0.25", "0.75"))
    done = toy.ledger("verify", "--recompute", "--rules", "tables", "--cores", "1")
    assert done.returncode == 0, "the recorded table is made again, whatever lies here now"
    raw = toy.path / "raw.csv"
    raw.write_text(raw.read_text().replace("0.25", "0.26"))
    done = toy.ledger("verify", "--recompute", "--rules", "tables", "--cores", "1")
    assert done.returncode == 1 and "different" in done.stdout


def test_tolerances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from levelt.files import sha256

    monkeypatch.chdir(tmp_path)
    Path("again").mkdir()
    cases = {"a.csv": ("x,y\na,1.0\n", "x,y\na,1.0004\n"), "b.json": ('{"n": 1.0}', '{"n": 1.0004}')}
    for name, (recorded, close) in cases.items():
        Path(name).write_text(recorded)
        for text, verdict in ((recorded, "identical"), (close, "close"), (close.replace("1.0", "1.1"), "different")):
            Path("again", name).write_text(text)
            assert compare(name, sha256(name), Path("again", name)).verdict == verdict
    Path("again/a.csv").write_text("x,y\nb,1.0\n")
    assert compare("a.csv", sha256("a.csv"), Path("again/a.csv")).verdict == "different"


# --- small parts -----------------------------------------------------------------------------------------------------


def test_record_names_are_snakemakes(tmp_path: Path) -> None:
    """Compared with Snakemake's own way to name a record, short and long."""
    from snakemake.persistence.file import FilePersistence

    for output in ("data/s/a.csv", "data/s/" + "long/" * 90 + "b.csv"):
        theirs = FilePersistence.__new__(FilePersistence)
        theirs._max_len = None
        expected = Path(theirs._record_path(str(tmp_path), output))
        assert record_path(output, tmp_path) == expected
        assert output_of(expected, tmp_path) == output


def test_dvc_sees_only_this_studys_records(published: Toy) -> None:
    import pathspec

    lines = (published.path / ".dvcignore").read_text().splitlines()
    ignored = pathspec.GitIgnoreSpec.from_lines(lines)
    for root in ("data/toy", "figures/toy", "paper/toy"):
        for rest in ("/a", "/é?~", "/models/m/x.csv", "/" + "long/" * 90 + "b.csv"):
            assert not ignored.match_file(str(record_path(root + rest))), root + rest
        for other in (root + "s/a", root[:-1] + "/a", root + "-2/a", "x" + root + "/a"):
            assert ignored.match_file(str(record_path(other))), other


def test_the_ledger_never_imports_torch(root: Path) -> None:
    program = (
        "import sys, pkgutil, importlib, levelt.cli, levelt.commands.ledger, levelt.ledger as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module('levelt.ledger.' + module.name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_dvc_lock_has_no_stage_that_is_gone(toy: Toy) -> None:
    lock = toy.path / "dvc.lock"
    tree = yaml.safe_load(lock.read_text())
    tree["stages"]["gone"] = tree["stages"]["models"]
    lock.write_text(yaml.safe_dump(tree))
    assert toy.ledger("commit").returncode == 0
    assert "gone" not in yaml.safe_load(lock.read_text())["stages"]
