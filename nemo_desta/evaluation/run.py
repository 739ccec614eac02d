"""The whole evaluation: prompt the model, score in both modes, run the controls and the judge, write one folder.

<output>/scores.json, report.html      results and settings
<output>/<benchmark>/prompts.jsonl     the prompts; answers.jsonl the answers (a killed run resumes from it);
                                       scored.jsonl verdicts by item, official and strict
<output>/judge.jsonl                   the judge's replies, by the hash of their requests
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_desta.config import check_keys
from nemo_desta.evaluation.controls import Control, first_line, run_controls, uses_audio
from nemo_desta.evaluation.files import Item, prediction_key, read_items, read_predictions
from nemo_desta.evaluation.intervals import bootstrap_interval
from nemo_desta.evaluation.judge import Judge
from nemo_desta.evaluation.prompts import Variant, default_variant, fingerprint, messages, variant
from nemo_desta.evaluation.report import write_report
from nemo_desta.evaluation.scores import MODES, Scores, score, scorer_of
from nemo_desta.evaluation.settings import EvaluateSettings, check
from nemo_desta.evaluation.sources import Source, open_source
from nemo_desta.recipes.engines import build_engine


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Runs everything that the settings ask for; returns the content of scores.json.

    Raises:
        ConfigError: wrong settings. FileNotFoundError: missing official files, with where to get them. ItemError: an
            item cannot be used; the message names it.
    """
    check(settings)
    names = list(dict.fromkeys([*settings.benchmarks, *settings.predictions]))
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    asked = {name: read_items(name, settings.data_root) for name in names if name not in settings.predictions}
    tasks = None
    if settings.rows is not None:
        from nemo_desta.evaluation.row_eval import evaluate_rows, plan_rows

        tasks = plan_rows(settings.rows, output / "rows", limit=settings.limit, controls=settings.controls)
    judge = None
    if settings.judge is not None:
        engine = build_engine(settings.judge.engine, settings.judge.llm)
        judge = Judge(engine, output / "judge.jsonl", prices=settings.judge.prices)
    source = open_source(settings) if asked or settings.rows is not None else None
    can_change_results = {k: v for k, v in asdict(settings).items() if k not in ("output", "progress", "device")}
    report: dict[str, Any] = {"settings": can_change_results, "benchmarks": {}}
    if source is not None:
        report["model"] = source.about()
    for name in names:
        if name in asked:
            found = _asked(name, asked[name][: settings.limit], source, settings, output / name, judge)
        else:
            rows, options = read_predictions(name, settings.predictions[name]), settings.scorers.get(name, {})
            found = _scored(name, rows, [], judge, output / name, options)
        report["benchmarks"][name] = found
    if tasks is not None:
        more = {"controls": settings.controls, "seed": settings.seed, "tasks": tasks}
        report["rows"] = evaluate_rows(source, settings.rows, output / "rows", **more)
    if source is not None:
        if settings.text_kept.prompts or settings.text_kept.texts:
            report["text_kept"] = _text_kept(source, settings)
        source.tell_cache()
    if judge is not None:
        report["judge"] = judge.about()
    scored = {**report["benchmarks"], **report.get("rows", {}).get("attributes", {})}
    tasks_controls = {
        name: [Control(**control) for control in found.get("controls", ())] for name, found in scored.items()
    }
    report["uses_audio"] = {name: uses_audio(controls) for name, controls in tasks_controls.items()}
    unreadable = [name for name, found in scored.items() if found.get("readable") is False]
    report["first_line"] = first_line(tasks_controls, unreadable)
    (output / "scores.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(output / "report.html", report)
    return report


def _text_kept(source: Source, settings: EvaluateSettings) -> dict[str, Any]:
    """The report's entry on the text LLM, with ``sentence``."""
    if source.model is None:
        sentence = "Text was not compared: the LLM is not in this process (engine=hf compares it)."
        return {"untouched": None, "sentence": sentence}
    from nemo_desta.evaluation.text_parity import text_parity

    return text_parity(source.model, settings.text_kept, progress=settings.progress)


def _asked(
    name: str,
    items: Sequence[Item],
    source: Source,
    settings: EvaluateSettings,
    folder: Path,
    judge: Judge | None,
) -> dict[str, Any]:
    """Prompts the model, scores, and runs the controls of one benchmark."""
    wanted = settings.prompts.get(name)
    if wanted is not None:
        variant(wanted)  # an unknown name fails before the first prompt

    def chosen(item: Item) -> Variant:
        return variant(wanted if wanted and item.choices else default_variant(name, item.choices))

    def predictions(some: Sequence[Item], part: Path) -> list[dict[str, Any]]:
        rows = [{"id": item.id, "messages": messages(item, chosen(item), source.tag)} for item in some]
        answers = source.ask(rows, part)
        key = prediction_key(name)
        return [
            {**item.fields, key: chosen(item).extract(answers[item.id], item)}
            if item.id in answers
            else dict(item.fields)
            for item in some
        ]

    used = {one.name: one for one in map(chosen, items)}
    options = settings.scorers.get(name, {})
    rows = predictions(items, folder)
    found = _scored(name, rows, list(used.values()), judge, folder, options)
    if settings.controls.items and any(item.audio is not None for item in items):
        by_id = {item.id: row for item, row in zip(items, rows, strict=True)}
        part = folder / "controls"

        def verdicts(some: Sequence[Mapping[str, Any]]) -> list[bool | None]:
            """Strict verdicts, without a judge."""
            return score(name, some, mode="strict", **_of_mode(name, "strict", options)).verdicts

        results = run_controls(
            items,
            settings.controls,
            part / "clips",
            lambda some: verdicts([by_id[item.id] for item in some]),
            lambda kind, changed: verdicts(predictions(changed, part / kind)),
            seed=settings.seed,
        )
        found["controls"] = [asdict(control) for control in results]
    return found


def _scored(
    name: str,
    rows: list[dict[str, Any]],
    chosen: list[Variant],
    judge: Judge | None,
    folder: Path,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores in both modes, with intervals; the judge, if there is one, judges first."""
    module = scorer_of(name)
    left_out = []
    if hasattr(module, "judge_requests"):
        asks = module.judge_requests(rows)
        if asks and judge is None:
            left_out.append(f"{len(asks)} requests to a judge (give judge={{llm: ..., engine: ...}})")
        elif asks:
            rows = module.with_judgements(rows, asks, judge.ask(asks))
    found: dict[str, Any] = {
        "items": len(rows),
        "variant": ", ".join(one.name for one in chosen) or "predictions given",
        "hash": fingerprint(chosen, module),
    }
    by_mode: dict[str, Scores] = {}
    for mode in MODES:
        try:
            by_mode[mode] = score(name, rows, mode=mode, **_of_mode(name, mode, options))
        except NotImplementedError as error:
            left_out.append(f"{mode}: {error}")
            continue
        found[mode] = _figures(by_mode[mode])
        left_out += [f"{mode}: {what}" for what in by_mode[mode].totals.get("left_out", ())]
    found["left_out"] = list(dict.fromkeys(left_out))
    found["quirks"] = [dict(quirk._asdict()) for quirk in getattr(module, "QUIRKS", ())]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scored.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            verdicts = {mode: scores.verdicts[i] for mode, scores in by_mode.items()}
            file.write(json.dumps({**row, "verdicts": verdicts}, ensure_ascii=False, default=str) + "\n")
    return found


def _figures(scores: Scores) -> dict[str, Any]:
    """One mode's entry in the report; an accuracy and its interval if any verdict counts."""
    counted = [float(verdict) for verdict in scores.verdicts if verdict is not None]
    figures: dict[str, Any] = {"totals": scores.totals, "num_counted": len(counted)}
    figures |= {"num_unparsed": scores.num_unparsed, "by": scores.by}
    if counted:
        figures["accuracy"] = sum(counted) / len(counted)
        figures["interval"] = bootstrap_interval(counted)
    return figures


def _of_mode(name: str, mode: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that this mode's scorer accepts. Raises ConfigError: neither mode accepts an option."""
    module = scorer_of(name)
    known = {each: set(inspect.signature(getattr(module, each)).parameters) - {"items"} for each in MODES}
    check_keys(options, sorted(known["official"] | known["strict"]), f"evaluate.scorers.{name}")
    return {key: value for key, value in options.items() if key in known[mode]}
