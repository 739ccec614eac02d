"""Targets by the LLM itself against targets in another style, with real weights: the papers' claim.

    python -m benchmarks.real_targets --llm FOLDER --whisper FOLDER --data-root FOLDER [--seeds 0 1 2]

It starts from the rows of `real_models` (same ``--work-dir``). One projector per source and seed, with equal clips,
prompts and steps: (self) the LLM's own answers; (persona) the same LLM tells each answer as another character, kept if
the fact is the same; (label) the bare value, as earlier corpora have it. Reported per source: perplexity of targets
under the frozen LLM (DeSTA2.5-Audio's measure), accuracy, and how often answers about test clips follow formats that
no training row asks for, beside the same LLM with the true description.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.real_models import (
    Stages,
    desta,
    evaluate,
    evaluations,
    parser,
    rows_of,
    share_cascades,
    training,
)
from benchmarks.real_models_scores import TASKS
from nemo_desta.recipes.prompts.constraints import Constraint, obeys

SOURCES = ("self", "persona", "label")
PERSONA = (
    "You are a cheerful radio host who calls everybody my friend. Say the user's sentence again in your own way. "
    "Keep its fact."
)
ATTEMPTS = 4
#: Name in tables -> request in words -> its check. None of them occurs in the training.
REQUESTS = {
    "capitals": ("ANSWER IN CAPITAL LETTERS ONLY.", Constraint("upper_case")),
    "lower case": ("Answer in lower case only.", Constraint("lower_case")),
    "one word": ("Answer with one word.", Constraint("one_word")),
    "four words": ("Answer in at most four words.", Constraint("max_words", (4,))),
    "I think": ('Begin your answer with "I think".', Constraint("starts_with", ("I think",))),
    "list": ("Answer with a bullet list.", Constraint("bullets")),
    "quotes": ("Put your whole answer in double quotes.", Constraint("quoted")),
    "two sentences": ("Do not use commas, and answer in two sentences.", Constraint("sentences", (2,))),
}
NAMES = {name: wording for name, (wording, _) in REQUESTS.items()}
FORMATS = dict(REQUESTS.values())
CLIPS_PER_FORMAT = 24


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--rows-per-task", type=int, default=400, help="(default: %(default)s)")
    command.add_argument("--tasks", nargs="+", choices=TASKS, default=["digit", "sound_class"], help="(default: both)")
    args = command.parse_args()
    work = Path(args.work_dir)
    out = work / "targets"
    out.mkdir(parents=True, exist_ok=True)
    run = Stages(out)
    settings = evaluations(work, args.tasks)["attributes"]
    run("sources", lambda: write_sources(args, work, out), out / "label.jsonl")
    run("perplexity", lambda: perplexity(args, out), out / "perplexity.json")
    for seed in args.seeds:
        for source in SOURCES:
            folder = out / f"{source}_{seed}"
            model = folder / "laptop" / "model"
            words = training(args, work, args.tasks, seed, rows={"rows": f"{out}/{source}.jsonl"}, folder=folder)
            run(f"training {folder.name}", lambda w=words: desta("train", *w), model / "config.json")
            found = folder / "attributes" / "scores.json"
            share_cascades(work / f"seed_{args.seeds[0]}" / "attributes", found.parent)
            run(
                f"accuracy {folder.name}",
                lambda m=model, o=found.parent: evaluate(m, o, settings, args, controls=0, text=False),
                found,
            )
            read, heard = out / "formats_read.json", folder / "formats.json"
            run("formats, descriptions", lambda m=model, o=read: formats(m, o, args, work, hears=False), read)
            run(f"formats {folder.name}", lambda m=model, o=heard: formats(m, o, args, work), heard)
    print(summary(args, out, run.seconds))


def write_sources(args: argparse.Namespace, work: Path, out: Path) -> None:
    """One file of rows per source: the rows for which the persona's version holds the same facts."""
    found = [row for task in args.tasks for row in _first(work, task, args.rows_per_task)]
    told = tell_again(args, found)
    kept = [(row, text) for row, text in zip(found, told, strict=True) if text is not None]
    print(f"persona: {len(kept)} of {len(found)} rows are told with the same fact", flush=True)
    versions = {
        "self": [row for row, _ in kept],
        "persona": [{**row, "response": text, "truncated": False} for row, text in kept],
        "label": [{**row, "response": value_of(row), "truncated": False} for row, _ in kept],
    }
    for name, rows in versions.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _first(work: Path, task: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a task that are whole."""
    files = sorted(rows_of(work, task, "train").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if not row.get("truncated")][:count]


def value_of(row: Mapping[str, Any]) -> str:
    """The true value of the attribute that the prompt asks about."""
    from nemo_desta.recipes.read_description import read_description

    name = row["prompt_requires"][0].replace("_", " ")
    return dict(read_description(row["seed_description"]).attributes)[name]


def tell_again(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Each response as the persona says it; None where no attempt keeps the fact in other words."""
    from nemo_desta.recipes.engines import build_engine
    from nemo_desta.recipes.engines.base import Request, SamplingConfig, generate_all

    engine = build_engine({"name": "hf", "dtype": args.dtype, "batch_size": 48}, args.llm)
    told: list[str | None] = [None] * len(rows)
    for attempt in range(ATTEMPTS):
        todo = [i for i, text in enumerate(told) if text is None]
        requests = [
            Request(
                [{"role": "system", "content": PERSONA}, {"role": "user", "content": rows[i]["response"]}],
                SamplingConfig(64, 0.7, 0.95),
                seed=1_000 * attempt + i,
            )
            for i in todo
        ]
        for i, answer in zip(todo, generate_all(engine, requests), strict=True):
            if not answer.truncated and same_fact(rows[i], answer.text):
                told[i] = answer.text.strip()
        print(f"attempt {attempt + 1}: {sum(text is not None for text in told)} of {len(rows)}", flush=True)
    return told


def same_fact(row: Mapping[str, Any], text: str) -> bool:
    """Whether the text names the value of the asked attribute, in words of its own."""
    from nemo_desta.recipes.gates.wordings import grounded_attributes

    named = grounded_attributes({**row, "response": text})
    return bool(named) and all(named.values()) and text.strip() != row["response"].strip()


def perplexity(args: argparse.Namespace, out: Path) -> None:
    """Of each source's targets under the frozen LLM, given description and prompt."""
    from nemo_desta.recipes.report.perplexity import target_perplexity

    others = {name: str(out / f"{name}.jsonl") for name in SOURCES[1:]}
    found = target_perplexity(str(out / "self.jsonl"), args.llm, others=others, dtype=args.dtype)
    print(found, flush=True)
    scores = {"self": found.own, **found.others}
    values = {name: {"perplexity": s.total.perplexity, "tokens": s.total.tokens} for name, s in scores.items()}
    (out / "perplexity.json").write_text(json.dumps(values, indent=1) + "\n")


def formats(model: Path, output: Path, args: argparse.Namespace, work: Path, *, hears: bool = True) -> None:
    """Formats that were never trained, asked about test clips, or about their descriptions: the shares that obey.

    The answers go beside ``output``.
    """
    from nemo_desta.evaluation.ask_model import ask_about_clips, ask_about_descriptions
    from nemo_desta.models.desta import DestaModel
    from nemo_desta.recipes.describe import describe

    rows = [json.loads(line) for line in (work / "tests.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if set(args.tasks) & set(row["attributes"])]
    chosen = rows[:: max(1, len(rows) // CLIPS_PER_FORMAT)][:CLIPS_PER_FORMAT]
    pairs = [(row, wording) for row in chosen for wording in FORMATS]
    questions = [f"What do you hear? {wording}" for _, wording in pairs]
    loaded = DestaModel.from_pretrained(model, device="cpu")
    if hears:
        clips = [Path(args.data_root) / row["audio"] for row, _ in pairs]
        answers = ask_about_clips(loaded, clips, questions, lengths=[row["duration"] for row, _ in pairs])
    else:
        answers = ask_about_descriptions(loaded, [describe(row) for row, _ in pairs], questions)
    obeyed = Counter(w for (_, w), answer in zip(pairs, answers, strict=True) if obeys(FORMATS[w], answer))
    lines = [
        {"id": row["id"], "question": question, "answer": answer}
        for (row, _), question, answer in zip(pairs, questions, answers, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    output.with_name(f"{output.stem}_answers.jsonl").write_text(text, encoding="utf-8")
    output.write_text(json.dumps({w: obeyed[w] / len(chosen) for w in FORMATS}, indent=1) + "\n")


def summary(args: argparse.Namespace, out: Path, seconds: Mapping[str, float]) -> str:
    """The tables over all seeds, written as ``results.md``, with a picture beside them.

    "Away from reading": how far the share of answers that obey a format is from that of the same LLM with the true
    description, the mean over formats. A bare value obeys "one word" whatever was asked, so the share alone misleads.
    """
    from nemo_desta.evaluation.attributes import render_table

    scores = json.loads((out / "perplexity.json").read_text())
    read = json.loads((out / "formats_read.json").read_text())
    lines, bars = [], {}
    for source in SOURCES:
        folders = [out / f"{source}_{seed}" for seed in args.seeds]
        found = [
            json.loads((folder / "attributes" / "scores.json").read_text())["rows"]["attributes"] for folder in folders
        ]
        followed = [json.loads((folder / "formats.json").read_text()) for folder in folders]
        cells = [f"{scores[source]['perplexity']:.2f}"]
        for task in args.tasks:
            cells.append(f"{mean(one[task]['accuracy'] for one in found):.3f}")
            cells.append(" ".join(f"{one[task]['accuracy']:.3f}" for one in found))
        away = [mean(abs(one[wording] - read[wording]) for wording in FORMATS) for one in followed]
        bars[source] = {name: mean(one[wording] for one in followed) for name, wording in NAMES.items()}
        lines.append([source, *cells, f"{mean(away):.3f}", " ".join(f"{one:.3f}" for one in away)])
    tasks = [column for task in args.tasks for column in (task, "seeds")]
    header = ["targets", "perplexity", *tasks, "formats: away from reading", "seeds"]
    bars["the LLM reads"] = {name: read[wording] for name, wording in NAMES.items()}
    by_format = [[source, *(f"{value:.2f}" for value in values.values())] for source, values in bars.items()]
    tables = [render_table(header, lines), render_table(["obeyed", *NAMES], by_format)]
    text = "\n\n".join([*tables, f"wall time: {sum(seconds.values()) / 60:.0f} min"])
    (out / "results.md").write_text(text + "\n")
    _plot(bars, out / "results.png")
    return text


def _plot(bars: Mapping[str, Mapping[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    width = 0.8 / len(bars)
    for number, (source, values) in enumerate(bars.items()):
        places = [i + width * (number - (len(bars) - 1) / 2) for i in range(len(values))]
        colour = "black" if source not in SOURCES else None
        axes.bar(places, list(values.values()), width=0.9 * width, label=source, color=colour)
    axes.set_xticks(range(len(NAMES)), list(NAMES))
    axes.set(ylabel="share of answers that obey", ylim=(0, 1.05))
    axes.legend(title="targets", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
