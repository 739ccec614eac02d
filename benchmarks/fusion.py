"""What fusion buys: each encoder alone, in pairs and all together, and three projectors, with equal steps.

    python -m benchmarks.fusion --data-root FOLDER [--encoder whisper=FOLDER ...] [--seeds 0 1 2] [--steps 150]

The demo's frozen LLM and three corpora of `real_audio`: spoken digits, sounds, emotional speech. The window projector
reads every set of encoders; ALARM's convolutions with cross-attention and DeSTA2.5's Q-Former, both scaled down, read
the first encoder and all. Encoders that are not given are stand-ins: the demo's, and a BEATs with random weights.
Reported: accuracy per task on the test splits, trainable parameters, vectors for the LLM per second of test audio.
The same command resumes. ``results.md`` and ``fusion.png`` in the work folder hold the table and the picture.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import real_audio, target_source
from benchmarks.real_models import hydra_value
from benchmarks.target_source import mean_and_range
from nemo_desta.demo.pool import prompt_pool
from nemo_desta.demo.run import quiet, self_generate

#: Corpus -> what its training rows ask, and rows per clip, so that each corpus gives about a third of the rows.
CORPORA = {"fsdd": (("digit",), 1), "esc10": (("sound_class",), 3), "ravdess": (("gender", "emotion"), 2)}
TESTS = [test for test in real_audio.TESTS if set(test[1]) <= set(CORPORA)]
TASKS = tuple(task for _, _, task, _ in TESTS)
STAND_INS = {"whisper": "package:demo/assets/encoders/whisper", "beats": "package:demo/assets/encoders/beats.pt"}
RANDOM = "random"
BATCH = 8

_KNOBS = "model.perception.projector"
#: Name in the table -> overrides of conf/demo.yaml; MAIN is the first encoder. Sizes fit an LLM of two million
#: parameters. The Q-Former keeps the paper's 64 queries per 30 s, but counts from 7.5 s, because clips are short. The
#: demo's learning rate, 2e-3, is too high for conv + CA: training loss .51 after 60 steps, .35 with 6e-4.
PROJECTORS = {
    "window": ["++callbacks.calibrate_clips=256"],
    "conv + CA": [
        "projector=conv",
        "model.optimizer.lr=6e-4",
        f"~{_KNOBS}.hidden_size",
        f"~{_KNOBS}.num_queries",
        f"+{_KNOBS}.adapter={{hidden_size: 192}}",
        f"+{_KNOBS}.adapters={{MAIN: {{norm: batch}}}}",
        f"+{_KNOBS}.fusion={{name: cross_attention, hidden_size: 192, num_heads: 4, feed_forward_size: 384}}",
    ],
    "Q-Former": [
        "projector=qformer",
        "model.optimizer.lr=6e-4",
        f"~{_KNOBS}.hidden_size",
        f"{_KNOBS}.num_layers=1",
        f"{_KNOBS}.num_queries=16",
        f"+{_KNOBS}.chunk_secs=7.5",
        f"+{_KNOBS}.feed_forward_size=512",
    ],
}
Variant = tuple[tuple[str, ...], str]


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parse(arguments)
    quiet()
    work = Path(args.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    encoders = read_encoders(args.encoder, work)
    _same_settings(work, {"steps": args.steps, "batch": BATCH, "encoders": encoders})
    rows = real_audio.read_rows(args.data_root, {name: f"{args.data_root}/manifests/{name}.jsonl" for name in CORPORA})
    for name, (tasks, per_clip) in CORPORA.items():
        pool = [prompt for prompt in prompt_pool(("plain",), tasks) if prompt.requires]
        self_generate([f"manifests/{name}.jsonl"], args.data_root, work / f"rows_{name}", "train", pool, per_clip)
    chosen = [one for one in variants(list(encoders)) if args.only is None or folder_name(one) in args.only]
    records = []
    for seed in args.seeds:
        for variant in chosen:
            records.append(run(variant, seed, encoders, rows, args, work))
            print(json.dumps(records[-1]), flush=True)
    stand_ins = set(encoders) - dict(args.encoder).keys()
    text = table(records, stand_ins)
    (work / "results.md").write_text(text + "\n")
    print(f"\n{text}\n{plot(records, stand_ins, work / 'fusion.png')}")


def read_encoders(given: Sequence[tuple[str, str]], work: Path) -> dict[str, dict[str, Any]]:
    """Label -> settings for the config, those that are given first, then the stand-ins for the others.

    Three layers of each are read: those after a third, two thirds and all of the blocks.
    """
    from nemo_desta.perception.encoders import encoder_shape
    from nemo_desta.perception.registry import ENCODERS
    from nemo_desta.sources import resolve_source

    random = work / "random.pt"
    if not random.exists():
        write_random_beats(random)
    paths, found = dict(given), {}
    for label, path in {**STAND_INS, RANDOM: str(random)}.items():
        paths.setdefault(label, path)
    for label, path in paths.items():
        name = "beats" if label == RANDOM else label if label in ENCODERS else label.split("_")[0]
        settings = {"name": name, "path": resolve_source(path)}
        blocks = encoder_shape(settings).num_layers
        settings["layer_ids"] = sorted({-(-blocks * third // 3) for third in (1, 2, 3)})
        found[label] = settings | ({"window_secs": "clip"} if name == "whisper" else {})
    return found


def write_random_beats(path: Path) -> None:
    """The demo's BEATs with random weights (seed 0)."""
    import torch

    from nemo_desta.demo.encoders import BeatsStudent

    torch.manual_seed(0)
    BeatsStudent().save(path)


def variants(labels: Sequence[str]) -> list[Variant]:
    """Encoders and projector of each run: every set with the window projector, the two ends with the others."""
    sets = [tuple(some) for size in (1, 2, len(labels)) for some in combinations(labels, size)]
    found = [(some, "window") for some in dict.fromkeys(sets)]
    ends = dict.fromkeys([(labels[0],), tuple(labels)])
    return found + [(some, name) for name in PROJECTORS if name != "window" for some in ends]


def folder_name(variant: Variant) -> str:
    labels, projector = variant
    return f"{'-'.join(labels)}_{projector.split()[0].lower()}"


def run(
    variant: Variant,
    seed: int,
    encoders: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    args: argparse.Namespace,
    work: Path,
) -> dict[str, Any]:
    """Train one projector and score it; returns the record of a finished run."""
    labels, projector = variant
    folder = work / f"{folder_name(variant)}_{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    started = time.perf_counter()
    files = work / "rows_*" / "rows" / "train-*.jsonl"
    words = overrides(variant, encoders, args.data_root, work)
    model = target_source.train(work, folder, files, files, seed, args.steps, *words)
    projector_of = model.perception.projector
    record = {
        "encoders": list(labels),
        "projector": projector,
        "seed": seed,
        "trainable": sum(p.numel() for p in projector_of.parameters() if p.requires_grad),
        "seconds": round(time.perf_counter() - started),
    }
    record |= score(model, rows, args.data_root)
    result.write_text(json.dumps(record, indent=1) + "\n")
    return record


def overrides(variant: Variant, encoders: Mapping[str, Mapping[str, Any]], data_root: str, work: Path) -> list[str]:
    """What differs from conf/demo.yaml."""
    labels, projector = variant
    return [
        f"data.audio_roots.default={data_root}",
        f"data.train_ds.max_batch_size={BATCH}",
        f"data.train_ds.bucket_buffer_size={4 * BATCH}",
        f"data.feature_cache={{folder: {work / 'features'}}}",
        "model.lr_scheduler.warmup_steps=20",
        *(f"++model.perception.encoders.{label}={hydra_value(encoders[label])}" for label in labels),
        f"model.perception.use=[{','.join(labels)}]",
        *(word.replace("MAIN", labels[0]) for word in PROJECTORS[projector]),
    ]


def score(model: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]], data_root: str) -> dict[str, Any]:
    """Accuracy and best constant answer by task, and the projector's vectors per second over the scored clips."""
    from nemo_desta.demo.score import Scores

    scores, durations = Scores(), {}
    for _, corpora, task, splits in TESTS:
        chosen = [row for name in corpora for row in rows[name] if row["split"] in splits]
        scores.score(model, chosen, task, data_root, name=task, progress=False)
        durations |= {row["id"]: row["duration"] for row in chosen}
    vectors = sum(model.perception.num_tokens(round(secs * model.sampling_rate)) for secs in durations.values())
    return {
        "accuracy": {one.task: one.accuracy.value for one in scores.results},
        "constant": {one.task: one.constant[1] for one in scores.results},
        "clips": {one.task: one.accuracy.total for one in scores.results},
        "vectors_per_second": vectors / sum(durations.values()),
    }


def grouped(records: Sequence[Mapping[str, Any]]) -> dict[Variant, list[Mapping[str, Any]]]:
    """The records of each variant, in their first order."""
    found: dict[Variant, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((tuple(record["encoders"]), record["projector"]), []).append(record)
    return found


def shown(labels: Sequence[str], stand_ins: set[str]) -> str:
    """The encoders as the table names them; a star marks a stand-in."""
    return " + ".join(f"{label}*" if label in stand_ins else label for label in labels)


def table(records: Sequence[Mapping[str, Any]], stand_ins: set[str]) -> str:
    """Means over seeds, smallest and largest in brackets; "mean" is over the tasks, of each seed."""
    from nemo_desta.evaluation.attributes import render_table

    lines = []
    for (labels, projector), own in grouped(records).items():
        values = [[r["accuracy"][task] for r in own] for task in TASKS]
        values.append([mean(r["accuracy"].values()) for r in own])
        size, rate = own[0]["trainable"] / 1e6, own[0]["vectors_per_second"]
        cells = [shown(labels, stand_ins), projector, f"{size:.2f} M", f"{rate:.1f}", str(len(own))]
        lines.append([*cells, *map(mean_and_range, values)])
    constant = records[0]["constant"]
    best = [f"{constant[task]:.2f}" for task in TASKS] + [f"{mean(constant.values()):.2f}"]
    lines.append(["best constant answer", "", "", "", "", *best])
    header = ["encoders (* stand-in)", "projector", "trainable", "vectors/s", "seeds", *TASKS, "mean"]
    return render_table(header, lines)


def plot(records: Sequence[Mapping[str, Any]], stand_ins: set[str], picture: Path) -> Path:
    """One panel per task and one for their mean: a bar per variant, a dot per seed, a line at the best constant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(records)
    colours = dict(zip(PROJECTORS, ("tab:green", "tab:orange", "tab:blue"), strict=True))
    figure, panels = pyplot.subplots(1, len(TASKS) + 1, figsize=(11, 0.6 + 0.32 * len(groups)), sharey=True)
    for panel, task in zip(panels, (*TASKS, "mean"), strict=True):
        for place, ((_, projector), own) in enumerate(groups.items()):
            values = [mean(r["accuracy"].values()) if task == "mean" else r["accuracy"][task] for r in own]
            panel.barh(place, mean(values), height=0.7, color=colours[projector], alpha=0.6)
            panel.scatter(values, [place] * len(values), color=colours[projector], s=10, zorder=3)
        constant = records[0]["constant"]
        panel.axvline(mean(constant.values()) if task == "mean" else constant[task], color="grey", lw=1, ls=":")
        panel.set(title=task.replace("_", " "), xlim=(0, 1))
    names = [f"{shown(labels, stand_ins)}, {projector}" for labels, projector in groups]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.supxlabel("share of right answers (* stand-in; dotted: best constant answer)", fontsize=9)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _same_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a work folder whose finished runs had other settings."""
    file, text = work / "settings.json", json.dumps(settings, indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise SystemExit(f"{file} has other settings, so its runs cannot be compared; give another --work-dir")
    file.write_text(text)


def _encoder(given: str) -> tuple[str, str]:
    label, equals, path = given.partition("=")
    if not (label and equals and path):
        raise argparse.ArgumentTypeError(f"found '{given}', expected LABEL=PATH")
    return label, path


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = target_source.parser(__doc__, "runs/fusion")
    parser.add_argument("--data-root", required=True, help="folder that holds manifests/ and audio/")
    parser.add_argument(
        "--encoder",
        nargs="+",
        default=[],
        type=_encoder,
        metavar="LABEL=PATH",
        help="real encoders; LABEL is a name of docs/encoders.md, or that and a suffix: hf_hubert=FOLDER",
    )
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="folders of runs without their seed")
    parser.set_defaults(steps=150)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
