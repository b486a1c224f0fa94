"""dvc.yaml is what the rules say, and nothing is left out silently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from levelt.ledger.graph import Job
from levelt.ledger.stages import folder_of, stages

JOBS = [
    Job("world", ("src/levelt/world/tasks.py",), ("data/s/world/text.parquet",), ("seed", "world")),
    Job("samples", ("data/s/world/text.parquet", "raw.csv"), ("data/s/samples/t.parquet",), ("tasks.t",)),
    Job("figure", ("data/s/samples/t.parquet",), ("figures/s/a.pdf", "figures/s/a.png"), ()),
    Job("all", ("figures/s/a.pdf",), (), ()),
]


def test_stages_of_a_small_graph() -> None:
    tree = stages(JOBS, "c.yaml", {"seed": 1, "tasks": {"t": {}}})["stages"]
    assert list(tree) == ["world", "samples", "figures", "records"]
    assert tree["world"]["outs"] == [{"data/s/world": {"persist": True}}]
    # `world` is not written in the config file (its defaults are code), so DVC cannot track it as a parameter
    assert tree["world"]["params"] == [{"c.yaml": ["seed"]}]
    assert tree["samples"]["deps"] == ["data/s/world", "raw.csv"]
    assert tree["figures"]["cmd"] == "snakemake --cores all --configfile c.yaml --until figure"
    assert "params" not in tree["figures"]


def test_stages_follow_the_folders() -> None:
    """No rule is named anywhere: a new one is placed by what it fills, and what cannot be ordered is one stage."""
    more = [
        Job("dance", ("data/s/samples/t.parquet",), ("data/s/steps/a", "data/s/music/a"), ()),
        Job("claims", ("figures/s/a.csv",), ("data/s/samples/claims.json",), ()),
    ]
    tree = stages([*JOBS, *more], "c.yaml", {})["stages"]
    assert list(tree) == ["world", "figures-samples", "music-steps", "records"]
    assert [list(out) for out in tree["figures-samples"]["outs"]] == [["data/s/samples"], ["figures/s"]]
    assert tree["records"]["deps"] == ["data/s/music", "data/s/steps", "figures/s"]
    assert tree["records"]["outs"] == [{".snakemake/metadata": {"persist": True}}]


def test_local_rooms_are_hashed_but_not_stored() -> None:
    tree = stages([Job("read", ("a",), ("data/s/activations/m/a", "data/s/behaviour/m"), ())], "c.yaml", {})["stages"]
    assert tree["activations-behaviour"]["outs"] == [
        {"data/s/activations": {"cache": False, "persist": True}},
        {"data/s/behaviour": {"persist": True}},
    ]
    kept = stages([Job("read", ("a",), ("data/s/activations/m/a",), ())], "c.yaml", {}, local_only=())["stages"]
    assert kept["activations"]["outs"] == [{"data/s/activations": {"persist": True}}]


def test_folders() -> None:
    assert folder_of("data/s/models/m/config.json") == "data/s/models"
    assert folder_of("figures/s/a.pdf") == "figures/s"


def test_dvc_yaml_is_up_to_date(root: Path) -> None:
    command = [sys.executable, "-m", "levelt.cli", "ledger", "stages", "--check"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drift_is_found(root: Path, tmp_path: Path) -> None:
    from conftest import copy_repository

    checkout = copy_repository(tmp_path)
    tree = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    tree["stages"]["hits-probes"]["deps"].pop()
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(tree))
    done = checkout.levelt("ledger", "stages", "--check")
    assert done.returncode == 2 and "run `levelt ledger stages`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_mistakes_are_one_sentence(root: Path, tmp_path: Path) -> None:
    """No traceback: another folder, a config that names a file which is not there, options without their action."""
    from conftest import copy_repository

    checkout = copy_repository(tmp_path)
    tree = yaml.safe_load((root / "config/smoke.yaml").read_text())
    tree["tasks"]["mine"] = {"source": {"kind": "file", "path": "none.csv"}, "question": "So?"}
    tree["tasks"]["mine"]["negated_question"] = "Not so?"
    tree["prompts"]["variations"].remove("other_instruction")
    tree["engine"]["interventions"] = ["block_nothing"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    for arguments, said in (
        (["stages", "--config", "mine.yaml"], "none.csv"),
        (["verify", "--figure", "blocking"], "need --recompute"),
        (["verify", "--recompute", "--partial"], "give one of them"),
    ):
        done = checkout.levelt("ledger", *arguments)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    command = [sys.executable, "-m", "levelt.cli", "ledger", "commit", "--config", str(tmp_path / "mine.yaml")]
    elsewhere = tmp_path / "docs"
    done = subprocess.run(command, cwd=elsewhere, env=checkout.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no Snakefile in" in done.stderr
    assert not (elsewhere / ".dvc").exists()


def test_what_cannot_be_planned_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake's own reason, not whatever line came last."""
    from levelt.files import InputError
    from levelt.ledger.plan import dry_run

    (tmp_path / "Snakefile").write_text('rule all:\n    input:\n        "none.csv",\n')
    (tmp_path / "c.yaml").write_text("study: s\n")
    (tmp_path / "profiles/default").mkdir(parents=True)
    (tmp_path / "profiles/default/profile.yaml").write_text("keep-going: false\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot plan c\.yaml: Missing.*none\.csv"):
        dry_run("c.yaml")


def test_a_config_has_one_name(tmp_path: Path) -> None:
    """However it is spelt, dvc.yaml names it by its path in the repository, and no machine's."""
    from conftest import copy_repository

    checkout = copy_repository(tmp_path)
    for name in ("./config/organisms.yaml", str(tmp_path / "config/organisms.yaml")):
        done = checkout.levelt("ledger", "stages", "--check", "--config", name)
        assert done.returncode == 0, done.stderr


def test_commit_refuses_an_unfinished_run(root: Path, tmp_path: Path) -> None:
    from conftest import copy_repository

    checkout = copy_repository(tmp_path)
    done = checkout.levelt("ledger", "commit", "--config", "config/smoke.yaml")
    assert done.returncode == 2 and "the run is not complete" in done.stderr
