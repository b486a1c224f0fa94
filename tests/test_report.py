"""Figures and the report from planted tables: they are drawn, typeset, byte-stable, and every number is generated."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import synthetic
from levelt.config import Probes, Prompts
from levelt.figures.claims import UNITS, draw_paper
from levelt.files import InputError, sha256, write_csv
from levelt.ledger.numbers import disagreements
from levelt.studies.audit_correlations import audit_correlations, second_options
from levelt.studies.claims import judge_all
from levelt.studies.estimates import Resampling
from levelt.studies.evidence import collect
from levelt.studies.latex import decimal, escape, interval, tabular
from levelt.studies.report import _behaviour_numbers, claim_numbers, numbers, render, sentence
from levelt.studies.scope import describe_models
from levelt.studies.verdicts import Unit
from levelt.typesetting import build, install

needs_latex = pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed (make latex)")


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    made = synthetic.study(pairs=24)
    hits = synthetic.audit_hits(made["hits"], made["rows"])
    evidence = collect(describe_models(made["manifests"]), [made["rows"]], [hits])
    resampling = Resampling(evidence.samples, synthetic.STATISTICS, 0)
    table = audit_correlations(evidence, second_options(evidence, [hits]), resampling, [])
    return {**made, "audit_correlations": table}


def draw(name: str, tables: list[Path], out: Path) -> None:
    from levelt.cli import main

    outputs = [part for suffix in ("pdf", "png", "csv") for part in (f"--{suffix}", str(out / f"{name}.{suffix}"))]
    assert main(["figure", name, "--tables", *map(str, tables), *outputs]) == 0


def test_a_figure_that_does_not_exist_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from levelt.cli import main

    outputs = [part for suffix in ("pdf", "png", "csv") for part in (f"--{suffix}", str(tmp_path / suffix))]
    for name in ("nope", "style"):
        assert main(["figure", name, "--tables", "none.csv", *outputs]) == 2
        assert f"there is no figure {name}; known figures: audit, " in capsys.readouterr().err


FIGURES = {
    "claims": ["claims"],
    "behaviour": ["behaviour"],
    "information": ["depth"],
    "selection": ["selection_layers", "codebook"],
    "correlations": ["information", "correlations"],
    "blocking": ["blocking", "unrelated"],
    "audit_correlations": ["audit_correlations"],
    "training_effects": ["information", "stage_layers"],
}


@pytest.fixture(scope="module")
def claims(study: dict[str, Any]) -> list[dict[str, Any]]:
    return [claim.to_json() for claim in judge_all(study)]


@pytest.fixture(scope="module")
def figures(study: dict[str, Any], claims: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    tables = {name: study[name] for sources in FIGURES.values() for name in sources if name != "claims"}
    for name, table in (tables | {"claims": pd.DataFrame(claims)}).items():
        write_csv(folder / "tables" / f"{name}.csv", table)
    for name, sources in FIGURES.items():
        draw(name, [folder / "tables" / f"{source}.csv" for source in sources], folder)
    return folder


def test_figures_have_three_files_and_are_byte_stable(figures: Path, tmp_path: Path) -> None:
    tables = figures / "tables"
    for name in ("behaviour", "information"):
        draw(name, [tables / f"{source}.csv" for source in FIGURES[name]], tmp_path)
        for suffix in ("pdf", "png", "csv"):
            assert sha256(tmp_path / f"{name}.{suffix}") == sha256(figures / f"{name}.{suffix}")
    changed = pd.read_csv(tables / "behaviour.csv")
    changed.loc[0, "exact_match"] = 0.123
    write_csv(tmp_path / "behaviour.csv.d" / "behaviour.csv", changed)
    draw("behaviour", [tmp_path / "behaviour.csv.d" / "behaviour.csv"], tmp_path)
    assert sha256(tmp_path / "behaviour.png") != sha256(figures / "behaviour.png")


def test_figures_draw_what_the_tables_say(figures: Path, study: dict[str, Any]) -> None:
    drawn = pd.read_csv(figures / "behaviour.csv")
    table = study["behaviour"]
    expected = table[table["polarity"] == "all"]["exact_match"].reset_index(drop=True)
    pd.testing.assert_series_equal(drawn["exact_match"], expected, rtol=1e-5)
    information = pd.read_csv(figures / "information.csv")
    one = information.query("stage == 'sft' and role == 'sample' and target == 'label' and depth == 1.0").iloc[0]
    # the last layer is depth 1 for every model: the mean over tasks of the cells' balanced accuracy
    cells = study["probes"].query("model == 'm-sft' and role == 'sample' and target == 'label' and depth == 1.0")
    mean = cells[cells["condition"] == one["condition"]]["balanced_accuracy"].mean()
    assert one["estimate"] == pytest.approx(mean, rel=1e-5)
    assert one["ci_low"] < one["estimate"] < one["ci_high"]


def test_claims_figure_shows_every_claim_that_was_tested(figures: Path, claims: list[dict[str, Any]]) -> None:
    drawn = pd.read_csv(figures / "claims.csv")
    assert list(drawn["id"]) == [claim["id"] for claim in claims if claim["estimate"] is not None]
    assert 5 <= len(drawn) < len(claims)  # this study has no interventions: those claims have no evidence
    assert {claim["paper"] for claim in claims} == {"asymmetry"}  # nor the parts of the other papers


@pytest.fixture(scope="module")
def values(study: dict[str, Any], claims: list[dict[str, Any]]) -> dict[str, str]:
    reports = {
        task: {"rows_in": 50, "rows_used": 48, "pairs": 24, "labels": {"yes": 24, "no": 24}}
        for task in ("acceptability", "belief")
    }
    settings = {
        "study": "test_study",
        "title": "A title with 100 % & more",
        "seed": 3,
        "prompts": Prompts(polarity="mixed"),
        "probes": Probes(folds=3),
        "statistics": synthetic.STATISTICS,
    }
    rest = {name: study[name] for name in ("manifests", "example")}
    return numbers(settings=settings, tables=study, claims=claims, samples=reports, **rest)


def test_means_in_the_text_nest_tasks_in_models_in_families_without_control_tasks() -> None:
    cells = [("a", "a-s", "one", 0.9), ("a", "a-s", "two", 0.7), ("a", "a-m", "one", 0.6), ("b", "b-s", "one", 0.1)]
    cells += [("a", "a-s", "codebook", 0.0), ("b", "b-s", "codebook", 1.0)]
    behaviour = pd.DataFrame(cells, columns=["family", "model", "task", "exact_match"])
    behaviour = behaviour.assign(stage="dpo", condition="instruction_first", polarity="all", answered=1.0)
    out = _behaviour_numbers(behaviour, "dpo", ["codebook"])
    assert out["exact_match.latest.instruction_first"] == decimal(((0.8 + 0.6) / 2 + 0.1) / 2)
    assert out["worst.latest.instruction_first"] == decimal(0.1)
    assert _behaviour_numbers(behaviour, "dpo", []) != out


def test_means_in_the_text_are_those_of_the_tables(values: dict[str, str], study: dict[str, Any]) -> None:
    table = study["information"].query("quantity == 'exact_match' and stage == 'sft' and condition == 'sample_first'")
    mean = table[(table[["task", "model", "family"]] == "all").all(axis=1)]["estimate"].item()
    assert values["exact_match.latest.sample_first"] == decimal(mean)


def test_legend_names_published_values_only_where_one_is_drawn() -> None:
    claim = planted("vectors", 1.0, "supported") | {"region_low": 0.0, "region_high": None}
    for published, named in ((None, False), (2.0, True)):
        figure, _ = draw_paper(
            pd.DataFrame([claim | {"published": published}]).astype({"region_high": float}), "vectors"
        )
        assert ("published" in [text.get_text() for text in figure.legends[0].get_texts()]) == named
        plt.close(figure)


def test_a_claim_becomes_a_sentence_with_its_verdict() -> None:
    claim = {"statement": "it rains", "unit": "pp", "estimate": -1.25, "ci_low": -2.0, "ci_high": -0.5}
    claim |= {"published": -3.0, "verdict": "supported"}
    assert sentence(claim) == r"It rains: $-1.2$ points [$-2.0$, $-0.5$] (published: $-3.0$), \emph{supported}."
    assert "published" not in sentence(claim | {"published": None})
    assert sentence(claim | {"estimate": None}) == "It rains: this study has nothing to test it on."


def planted(paper: str, estimate: float | None, verdict: str, unit: str = "pp") -> dict[str, Any]:
    """A judged claim of a paper."""
    bounds = dict.fromkeys(("estimate", "ci_low", "ci_high"), estimate)
    names = {"id": f"{paper}.{verdict}", "paper": paper, "short": paper, "statement": "it is so", "test": "above 0"}
    return {**names, **bounds, "unit": unit, "published": None, "verdict": verdict}


def test_claims_of_each_paper_are_counted_and_shown_apart() -> None:
    several = [planted("asymmetry", 1.0, "supported"), planted("vectors", 2.0, "supported", "logits")]
    several += [planted("vectors", -3.0, "contradicted", "log10"), planted("vectors", None, "undecided")]
    out = claim_numbers(several)
    assert [out[f"verdicts.{key}"] for key in ("tested", "supported", "contradicted", "undecided")] == list("3210")
    assert out["verdicts.vectors.tested"] == "2" and out["verdicts.asymmetry.supported"] == "1"
    assert (
        out["claim.supported"].startswith("It is so: 1.0 points") and "2.000 logits" in out["claim.vectors.supported"]
    )
    assert "asymmetry" in out["table.claims"] and "vectors" not in out["table.claims"]
    assert not list(disagreements(out, several))
    assert list(disagreements(out | {"verdicts.vectors.supported": "2"}, several))


def test_audit_says_which_correlation_a_defect_moves_most(study: dict[str, Any], values: dict[str, str]) -> None:
    table = study["audit_correlations"]
    means = table[table["task"] == "all"]
    for _, rows in means.groupby("level"):
        most = rows.loc[rows["difference"].abs().idxmax()]
        assert f"difference {decimal(most['difference'])}" in values["audit.correlations"]
        assert f"of {len(rows)} differences" in values["audit.correlations"]
    assert values["table.audit.correlations"].count(r"\\") == len(means) + 1  # and the header


def test_every_unit_has_a_name_in_figure_and_report() -> None:
    assert set(UNITS) == set(get_args(Unit))
    for unit in UNITS:
        assert sentence(planted("vectors", 1.0, "supported", unit))


@needs_latex
def test_report_builds_and_is_byte_stable(values: dict[str, str], figures: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.tex").write_text(render(values), encoding="utf-8")
    inputs = {"references.bib": root / "paper/references.bib", "numbers.tex": tmp_path / "numbers.tex"}
    inputs |= {path.name: path for path in figures.glob("*.pdf")}
    for name in ("1.pdf", "2.pdf"):
        build(root / "paper/report.tex", inputs, tmp_path / name)
    assert sha256(tmp_path / "1.pdf") == sha256(tmp_path / "2.pdf")
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", str(tmp_path / "1.pdf"), "-"], capture_output=True, text=True).stdout
        assert "A title with 100 % & more" in text
        assert "??" not in text, "an unresolved reference"
        assert values["exact_match.latest.instruction_first"] in text


@needs_latex
def test_unknown_number_stops_the_build(values: dict[str, str], figures: Path, root: Path, tmp_path: Path) -> None:
    without = {key: value for key, value in values.items() if key != "probes.count"}
    (tmp_path / "numbers.tex").write_text(render(without), encoding="utf-8")
    inputs = {"references.bib": root / "paper/references.bib", "numbers.tex": tmp_path / "numbers.tex"}
    inputs |= {path.name: path for path in figures.glob("*.pdf")}
    with pytest.raises(InputError, match=r"report\.tex does not build: .*probes\.count"):
        build(root / "paper/report.tex", inputs, tmp_path / "out.pdf")
    assert not (tmp_path / "out.pdf").exists()


def test_no_latex_is_one_sentence(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"LaTeX is missing \(latexmk, pdflatex, bibtex\): run `levelt latex"):
        build(root / "paper/report.tex", {}, tmp_path / "out.pdf")


def test_report_source_types_no_result(root: Path) -> None:
    """The results have no number of their own but the 0.5 of chance and the steps 1 to 3 of a list: all are macros."""
    source = (root / "paper/report.tex").read_text(encoding="utf-8")
    results = source[source.index(r"\section{Results}") : source.index(r"\section{Limits}")]
    parts = [path for path in (root / "paper").glob("*.tex") if path.name != "report.tex"]
    results += "".join(path.read_text(encoding="utf-8") for path in parts)
    text = re.sub(
        r"\\(levelt|ifleveltset|ifleveltfilled|label|ref|cite[pt]|leveltfigure|says)(\[[^]]*\])?\{[^}]*\}", "", results
    )
    assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= {"0.5", "95", "0", "1", "3"}


def test_formatting() -> None:
    assert decimal(-0.004) == "0.00" and decimal(-0.5) == "$-0.50$" and decimal(float("nan")) == "--"
    assert interval(0.1, 0.25) == "[0.10, 0.25]" and interval(float("nan"), 1.0) == ""
    assert escape("50% of a_b & “x” ✓") == r"50\% of a\_b \& ``x'' [U+2713]"
    assert tabular(["a"], [["1"], [], ["2"]], "l").count(r"\\") == 3
    assert "\n{}[U+2713]" in tabular(["a"], [["1"], ["[U+2713]"]], "l")  # not an argument of the line break before


def test_latex_is_not_installed_where_nobody_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InputError, match=r"LaTeX is missing .* `sudo apt-get install latexmk texlive"):
        install()
