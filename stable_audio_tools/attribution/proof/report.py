"""What the proof found, as numbers for machines and as a page for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.evidence.confidence import ALPHA
from stable_audio_tools.attribution.proof.duplicates import duplicates_table
from stable_audio_tools.attribution.proof.experiment import COPY, GENERATED, HELD_OUT, Experiment
from stable_audio_tools.attribution.proof.lds import Outcomes, Split, ceiling, lds, lds_table, tuned
from stable_audio_tools.attribution.proof.methods import Method, Scorer
from stable_audio_tools.attribution.proof.removal import groups_table, removal_table
from stable_audio_tools.attribution.proof.similarity import same_group
from stable_audio_tools.attribution.proof.standing import standing_table
from stable_audio_tools.report.page import Page, table, text
from stable_audio_tools.runtime.files import write_json

ARTIST_ALONE = "artist alone"
TUNED = " (tuned)"
LIMITS = (
    "These figures are of small models on this training set. A larger model trained for longer may be easier"
    " or harder to explain. An interval holds the uncertainty of the subsets and queries drawn, not that of"
    " another training set."
)


def proof_report(
    experiment: Experiment,
    methods: Sequence[Method],
    *,
    default: str,
    baseline: str,
    pairs: Sequence[tuple[str, str]] = (),
    draws: int = 1000,
) -> dict[str, Any]:
    """Everything that can be said from what is there.

    Args:
        methods: ways of scoring; each is judged as it is, and with the lambda that did best on the tuning
            half.
        default: name of the method that the command uses.
        baseline: name of the method that others are compared with.
        pairs: further methods to compare with each other.
    """
    scorer = experiment.scorer()
    methods = [method for method in methods if scorer.can(method)]
    similar = experiment.baseline_scores()
    similar[ARTIST_ALONE] = same_group(experiment.data.groups, experiment.groups_of_queries())
    report: dict[str, Any] = {"models": len(experiment.results.read()), "tracks": len(experiment.data.tracks)}
    chosen: dict[str, dict[str, Method]] = {}
    tuning: dict[str, dict[str, float]] = {}
    for kind in (GENERATED, HELD_OUT):
        outcomes, rows = experiment.outcomes(kind), experiment.rows_of(kind)
        if outcomes is None:
            continue
        found = _kind_report(outcomes, rows, kind, scorer, methods, similar, baseline, pairs, draws)
        report[kind], chosen[kind], tuning[kind] = found
    if len(tuning) == 2:
        report["best_of_both_by_tuning"] = _best_of_both(tuning)
    fixed = {method.name: scorer.scores(method) for method in methods} | similar
    if experiment.data.copies is not None and len(experiment.data.originals):
        rows = experiment.rows_of(COPY)
        against = "aligned-cosine"
        report["copies"] = duplicates_table(
            {name: values[rows] for name, values in fixed.items()},
            experiment.data.originals,
            experiment.data.copy_kinds,
            against,
        )
    report |= _removal_report(experiment, fixed)
    shipped = next((method for method in methods if method.name == default), None)
    if shipped is not None and not shipped.parts and shipped.estimator == "dtrak":
        kinds = {kind: experiment.rows_of(kind) for kind in (GENERATED, HELD_OUT, COPY)}
        report["standing out"] = standing_table(
            scorer.beside(shipped.plans),
            shipped.lambda_scale,
            "score_squared" if shipped.square else "score",
            experiment.data.groups,
            {kind: rows for kind, rows in kinds.items() if rows},
            experiment.groups_of_queries(),
            HELD_OUT if kinds[HELD_OUT] else GENERATED,
        )
    report["default"] = default
    return report


def _kind_report(
    outcomes: Outcomes,
    rows: list[int],
    kind: str,
    scorer: Scorer,
    methods: Sequence[Method],
    similar: dict[str, Tensor],
    baseline: str,
    pairs: Sequence[tuple[str, str]],
    draws: int,
) -> tuple[dict[str, Any], dict[str, Method], dict[str, float]]:
    """The table of one kind of query on the reporting half, and what tuning chose."""
    split = Split.of(len(outcomes.subsets), len(rows), kind)
    tune = outcomes.part(split.tune_subsets, split.tune_queries)
    told = outcomes.part(split.report_subsets, split.report_queries)
    at = torch.tensor(rows)
    tune_rows, told_rows = at[split.tune_queries], at[split.report_queries]
    scores: dict[str, Tensor] = {}
    chosen, tuning, notes = {}, {}, {}
    for method in methods:
        best, value = tuned(method, scorer, tune, tune_rows)
        chosen[method.name], tuning[method.name] = best, value
        scores[method.name] = scorer.scores(method)[told_rows]
        notes[method.name] = {
            "lambda": method.lambda_scale, "tuning_lds": round(lds(tune, scorer.scores(method)[tune_rows]), 5)
        }  # fmt: skip
        if best != method:
            name = method.name + TUNED
            scores[name] = scorer.scores(best)[told_rows]
            notes[name] = {"lambda": _lambda(best), "tuning_lds": round(value, 5)}
    for name, values in similar.items():
        scores[name] = values[told_rows]
        notes[name] = {"tuning_lds": round(lds(tune, values[tune_rows]), 5)}
    against = baseline if baseline in scores else None
    lines, bootstrap = lds_table(scores, told, against=against, draws=draws)
    for line in lines:
        line |= notes[line["method"]]
    best_similar = max(similar, key=bootstrap.estimates.__getitem__)
    for line in lines:
        if line["method"] != best_similar:
            line["minus_best_similarity"] = bootstrap.difference(line["method"], best_similar).to_dict()
    top = ceiling(told, draws)
    by_tuning = max(tuning, key=tuning.__getitem__)
    return (
        {
            "queries": [len(tune_rows), len(told_rows)],
            "subsets": [len(split.tune_subsets), len(split.report_subsets)],
            "seeds": len(outcomes.measured),
            "ceiling": None
            if top is None
            else {"retrained": top.retrained.to_dict(), "perfect": top.perfect.to_dict()},
            "best_similarity": best_similar,
            "chosen_by_tuning": {"method": by_tuning, "lambda": _lambda(chosen[by_tuning])},
            "pairs": [
                {"method": one, "other": other, "difference": bootstrap.difference(one, other).to_dict()}
                for one, other in pairs
                if one in scores and other in scores
            ],
            "lds": lines,
        },
        chosen,
        tuning,
    )


def _best_of_both(tuning: dict[str, dict[str, float]]) -> str:
    """The method whose mean over both kinds was best on the tuning halves."""
    first, second = tuning.values()
    return max(first, key=lambda name: first[name] + second.get(name, -1.0))


def _lambda(method: Method) -> float:
    return method.parts[0].lambda_scale if method.parts else method.lambda_scale


def _removal_report(experiment: Experiment, scores: dict[str, Tensor]) -> dict[str, Any]:
    found = experiment.results.read()
    report: dict[str, Any] = {}
    names = {name for method in experiment.removal_methods for name in method.needs()}
    there = set(experiment.scorer().kernels)
    if any(key.startswith("remove/") for key in found) and names <= there:
        made = experiment.removals()
        against = [*experiment.removal_baselines, "at random"]
        count, seeds = len(experiment.data.tracks), experiment.settings.seeds
        for kind in (GENERATED, HELD_OUT):
            asked = set(experiment.rows_of(kind))
            part = [removal for removal in made if removal.query in asked]
            if part:
                report[f"removal, {kind}"] = removal_table(part, found, count, seeds, against)
    measured = [*experiment.rows_of(GENERATED), *experiment.rows_of(HELD_OUT)]
    groups = groups_table(
        {name: values[measured] for name, values in scores.items()},
        experiment.data.groups,
        experiment.left_out_jobs(),
        found,
    ) if any(key.startswith("full/") for key in found) else []  # fmt: skip
    if groups:
        report["without an artist"] = groups
    return report


def report_text(report: dict[str, Any]) -> str:
    """The tables in plain text."""
    lines = [f"{report['models']} models, {report['tracks']} tracks"]
    for kind in (GENERATED, HELD_OUT):
        if kind in report:
            lines.append(f"{kind}: tuning chose {report[kind]['chosen_by_tuning']}")
    if "best_of_both_by_tuning" in report:
        lines.append(f"best of both kinds by tuning: {report['best_of_both_by_tuning']}")
    for title, head, rows in _tables(report):
        note = _note(report, title)
        lines += ["", f"## {title}", *([note] if note else []), *_aligned([head, *rows])]
    return "\n".join(lines)


def write_report(
    folder: Path, report: dict[str, Any], about: dict[str, Any], title: str
) -> tuple[Path, Path]:
    """``report.json`` and ``report.html`` in ``folder``."""
    write_json(folder / "report.json", {**report, "about": about})
    page = Page(
        title,
        "Models were trained again on parts of the training set. A score is good when it foretells which of"
        " them do well on a clip, and when leaving out the tracks of highest score hurts the clip most.",
    )
    page.section("What was done", text(
        f"{report['models']} small models were trained on {report['tracks']} tracks and parts of them."
        " Subsets hold exactly half of each artist's tracks, so that knowing the artists alone explains"
            " nothing."
        " Whatever was tuned was tuned on one half of the subsets and queries; the tables are of the other"
        " half."
    ), text(LIMITS))  # fmt: skip
    for heading, head, rows in _tables(report):
        note = _note(report, heading)
        page.section(heading, *([text(note)] if note else []), table(head, rows))
    page.section(
        "Settings", table(["setting", "value"], [[name, str(value)] for name, value in about.items()])
    )
    return folder / "report.json", page.write(folder / "report.html")


def _tables(report: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of every table."""
    made = []
    for kind in (GENERATED, HELD_OUT):
        if kind not in report:
            continue
        part = report[kind]
        title = f"Linear datamodeling score, {kind} queries"
        head = ["method", "lambda", "score", "of the ceiling", "minus baseline", "minus best similarity"]
        rows = [
            [
                line["method"], str(line.get("lambda", "")), _shown(line["lds"]),
                f"{100 * line['of_ceiling']:.1f} %" if "of_ceiling" in line else "",
                _shown(line.get("minus_baseline")), _shown(line.get("minus_best_similarity")),
            ]
            for line in part["lds"]
        ]  # fmt: skip
        made.append((title, head, rows))
        if part["pairs"]:
            rows = [[line["method"], line["other"], _shown(line["difference"])] for line in part["pairs"]]
            made.append((f"Compared in pairs, {kind} queries", ["method", "less", "difference"], rows))
    for name in [name for name in report if name.startswith("removal")]:
        others = sorted({key for line in report[name] for key in line if key.startswith(("times", "minus"))})
        head = ["left out", "queries", "loss rises by", "in percent", *others]
        rows = [
            [
                line["method"],
                str(line["queries"]),
                _shown(line["rise"], 5),
                _shown(line["rise_in_percent"], 2),
            ]
            + [_shown(line.get(other), 5 if other.startswith("minus") else 2) for other in others]
            for line in report[name]
        ]
        made.append((f"Top tracks left out ({name.removeprefix('removal, ')} queries)", head, rows))
    if "without an artist" in report:
        rows = [
            [line["method"], str(line["groups"]), _shown(line["correlation"])]
            for line in report["without an artist"]
        ]
        made.append(("One artist left out", ["method", "artists", "rank correlation with the loss"], rows))
    if "standing out" in report:
        rows = [
            [
                line["what"],
                line["queries"],
                f"{line['stand_out']} of {line['count']}",
                str(line.get("right", "")),
            ]
            for line in report["standing out"]
        ]
        head = ["stands out", "queries", "how many", "by their artist"]
        made.append((f"Verdicts, at a level of {ALPHA:.0%}", head, rows))
    if "copies" in report:
        made.append(_copies_table(report["copies"]))
    return made


def _note(report: dict[str, Any], heading: str) -> str:
    """How much the table of a kind of query rests on, and how far a score could reach."""
    for kind in (GENERATED, HELD_OUT):
        if heading != f"Linear datamodeling score, {kind} queries":
            continue
        part = report[kind]
        note = (
            f"{part['queries'][1]} queries, {part['subsets'][1]} subsets, {part['seeds']} seeds; square"
            " brackets hold 95 % intervals. 1 is a perfect ranking of the models, 0 chance."
        )
        if part["ceiling"] is None:
            return note
        return (
            f"{note} One retraining foretells another at {_shown(part['ceiling']['retrained'])}; a"
            f" perfect estimate would reach {_shown(part['ceiling']['perfect'])}, the ceiling."
        )
    return ""


def _copies_table(lines: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """One row a method: reciprocal rank of the original over all copies; by kind, how often first."""
    kinds = [kind for kind in dict.fromkeys(line["kind"] for line in lines) if kind != "all"]
    by = {(line["method"], line["kind"]): line for line in lines}
    rows = []
    for method in dict.fromkeys(line["method"] for line in lines):
        every = by[method, "all"]
        rows.append(
            [
                method,
                _shown(every["reciprocal_rank"]),
                _shown(every.get("minus_baseline")),
                *(f"{100 * by[method, kind]['first']:.0f} %" for kind in ("all", *kinds)),
            ]
        )
    rows.sort(key=lambda row: row[1], reverse=True)
    head = ["method", "reciprocal rank", "minus aligned-cosine", "first", *kinds]
    return "Altered copies of training tracks: is the original ranked first?", head, rows


def _shown(interval: dict[str, float] | None, digits: int = 3) -> str:
    if interval is None:
        return ""
    return "{value:+.{d}f} [{low:+.{d}f}, {high:+.{d}f}]".format(**interval, d=digits)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
