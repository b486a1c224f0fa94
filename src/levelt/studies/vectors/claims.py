"""The claims of the second paper (C1 to C5 of methods/2), each as a declared test on the table ``vectors_stages``.

As in the first paper's, every claim is tested on the mean over tasks, models and families of the latest stage of
training, claims about post-training on its change since base. No value is published for any of them in a form that
could stand beside these means. docs/vectors.md says what the quantities are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from levelt.studies.vectors.columns import NONE
from levelt.studies.verdicts import Claim, Finding, Region, Tables, Unit, above, below, find
from levelt.vocabulary import ALL, latest_stage

TABLE = "vectors_stages"


def _evidence(quantity: str, unit: Unit, earlier: str = NONE) -> Callable[[Tables], Finding]:
    def evidence(tables: Tables) -> Finding:
        table = tables[TABLE]
        scale = 100 if unit in ("pp", "percent") else 1
        wanted = {"stage": latest_stage(table["stage"]), "earlier_stage": earlier, "task": ALL}
        of = "vectors of rephrased instructions" if quantity.startswith("separable") else "queries"
        return find(table, "estimate", scale, of, quantity=quantity, **wanted)

    return evidence


def _claim(
    name: str,
    short: str,
    statement: str,
    test: Region,
    quantity: str,
    unit: Unit,
    source: str,
    earlier: str = NONE,
) -> Claim:
    evidence = _evidence(quantity, unit, earlier)
    return Claim(f"vectors.{name}", short, statement, test, unit, None, source, TABLE, evidence)


def _claims() -> Iterable[Claim]:
    yield _claim(
        "followed",
        "first token of the answer is right",
        "contrastive instructions are followed: more than half of the answers begin with the right token",
        above(50),
        "followed",
        "percent",
        "methods/2 section 5.3",
    )
    yield _claim(
        "c1.effect",
        "patch of the last token's vector, answer",
        "the last instruction token's vector, patched into a prompt without an instruction, raises the answer's logit",
        above(0),
        "effect_last",
        "logits",
        "C1",
    )
    yield _claim(
        "c1.specific",
        "the same, over the other instruction's answer",
        "it raises its own instruction's answer more than the other instruction's",
        above(0),
        "specific_last",
        "logits",
        "C1",
    )
    yield _claim(
        "c1.place",
        "the same, last token minus another token",
        "the last token of the instruction does so more than its best other token",
        above(0),
        "last_minus_other",
        "logits",
        "C1",
    )
    yield _claim(
        "c1.early",
        "the same, early minus late layers",
        "vectors of the first half of the layers do so more than those of the second half",
        above(0),
        "early_minus_late",
        "logits",
        "C1",
    )
    yield _claim(
        "c1.tuning",
        "patch of the last token's vector, post-training",
        "post-training raises what the last token's vector does for the answer",
        above(0),
        "effect_last",
        "logits",
        "C1, question a",
        "base",
    )
    yield _claim(
        "c1.paths",
        "high-ranking paths, last token minus others",
        "a larger share of the paths from the last instruction token leads to the answer than of those from its others",
        above(0),
        "paths_last_minus_other",
        "pp",
        "C1, Figure 4",
    )
    for method, name in (("logistic", "logistic probe"), ("lda", "linear discriminants")):
        yield _claim(
            f"c2.{method}",
            f"separability over shuffled labels, {name}",
            f"vectors of different instructions separate linearly in unseen wordings, {name}: held-out accuracy minus "
            "the highest that shuffled labels reach",
            above(0),
            f"separable.{method}",
            "pp",
            "C2",
        )
    yield _claim(
        "c3.last",
        "pair of layers minus sum of singles, last token",
        "the last token's vectors at two layers together do more than the sum of what each does",
        above(0),
        "interaction_last",
        "logits",
        "C3",
    )
    yield _claim(
        "c3.acting",
        "pair of layers minus sum, strongest token",
        "so do those of the instruction token that acts most",
        above(0),
        "interaction_other",
        "logits",
        "C3, at the token that holds the instruction here",
    )
    yield _claim(
        "c3.tuning",
        "pair minus sum, last token, post-training",
        "post-training raises this interaction of the last token's vectors",
        above(0),
        "interaction_last",
        "logits",
        "C3, question b",
        "base",
    )
    yield _claim(
        "c4.exact",
        "all paths against the model, exact",
        "the contributions of all paths, traced exactly, add up to the model's logits (to a ten-thousandth)",
        below(-4),
        "error_exact",
        "log10",
        "C4",
    )
    yield _claim(
        "c4.released",
        "all paths against the model, as released",
        "traced as released, they add up to the model's logits (to a tenth)",
        below(-1),
        "error_paper",
        "log10",
        "C4",
    )
    measures = {"activity": "use of heads by high-ranking paths", "flow": "flow of all paths through heads"}
    for measure, of in measures.items():
        for source in ("instruction", "query"):
            yield _claim(
                f"c5.{measure}.{source}",
                f"{measure} from the {source}, over both nulls",
                f"in the later layers, two instructions differ more in the {of} from the {source} tokens than other "
                "queries and other wordings do",
                above(0),
                f"late.{measure}.{source}",
                "pp",
                "C5",
            )
            yield _claim(
                f"c5.later.{measure}.{source}",
                f"{measure} from the {source}, late minus early",
                f"they do so more in the later than in the earlier layers ({measure} from the {source})",
                above(0),
                f"later.{measure}.{source}",
                "pp",
                "C5",
            )


CLAIMS: tuple[Claim, ...] = tuple(_claims())
