"""Experiment on real recordings (conf/real_audio.yaml): digits, sounds and voices through the whole pipeline.

    python benchmarks/real_audio.py --data-root FOLDER [--work-dir runs/real_audio] [--seeds 0 1 2]

Stand-in encoders are trained on generated audio and the corpora's training clips; the demo's LLM generates the rows;
the projector is trained once per seed and evaluated once on the test splits. Also: random encoders and each encoder
alone. A stage is skipped if its output exists. ``--valid`` evaluates the validation splits, for choosing settings.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nemo_desta.demo.corpus import build_corpus
from nemo_desta.demo.pool import prompt_pool
from nemo_desta.demo.run import LLM, compose, quiet, self_generate

TASKS = ("digit", "gender", "emotion", "sound_class")
#: (name in the table, corpora, task, splits that are scored)
TESTS = (
    ("digit, fsdd", ("fsdd",), "digit", ("test",)),
    ("sound, esc10 test + valid", ("esc10",), "sound_class", ("test", "valid")),
    ("gender, ravdess", ("ravdess",), "gender", ("test",)),
    ("gender, librispeech", ("librispeech_clean", "librispeech_other"), "gender", ("test",)),
    ("emotion, ravdess", ("ravdess",), "emotion", ("test",)),
)
MANIFESTS = [
    f"manifests/{name}.jsonl"
    for name in ("fsdd", "esc10", "ravdess", "librispeech_clean", "librispeech_other", "ljspeech")
]
VARIANTS = {
    "fused": [],
    "random": [],  # untrained encoders
    "whisper": ["model.perception.use=[whisper]"],
    "beats": ["model.perception.use=[beats]"],
}


def main() -> None:
    args = _parse()
    quiet()
    work_dir = Path(args.work_dir)
    config = compose("real_audio", [f"data_root={args.data_root}", f"work_dir={work_dir}"])
    rows = read_rows(args.data_root, config.corpora)
    generated = build_corpus(work_dir / "generated", seed=0)
    make_encoders(work_dir, args)
    write_rows(config.corpora, generated, args.data_root, work_dir)
    for variant in args.variants:
        for seed in args.seeds if variant == "fused" else args.seeds[:1]:
            score_run(variant, seed, rows, args, work_dir)
    print(summary(work_dir, args))


def read_rows(data_root: str, corpora: Any) -> dict[str, list[dict[str, Any]]]:
    """Manifest rows by corpus; paths outside ``data_root`` are refused."""
    from nemo_desta.recipes.corpora import load_corpus

    return {name: list(load_corpus(manifest, data_root)) for name, manifest in corpora.items()}


def make_encoders(work_dir: Path, args: argparse.Namespace) -> None:
    """Continue training the shipped stand-in encoders on the corpora's training clips; also write untrained ones."""
    from nemo_desta.demo.encoders import ASSETS

    if (work_dir / "encoders" / "beats.pt").exists() and (work_dir / "encoders_random" / "beats.pt").exists():
        return
    voices = build_corpus(work_dir / "voices", seed=1, clips=6000)
    common = ["--corpus", str(voices), "--data-root", args.data_root, "--extra", *MANIFESTS]
    learnt = ["--init", str(ASSETS), "--steps", str(args.encoder_steps), "--lr", "1e-3"]
    for folder, options in (("encoders", learnt), ("encoders_random", ["--steps", "0"])):
        command = [sys.executable, "-m", "nemo_desta.demo.encoders", "--out", str(work_dir / folder), *common]
        subprocess.run([*command, *options], check=True)


def write_rows(corpora: Any, generated: Path, data_root: str, work_dir: Path) -> None:
    """Self-generation with the demo's LLM: real training splits, generated clips, and rows for validation."""
    pool, manifests = prompt_pool(("plain",), TASKS), list(corpora.values())
    self_generate(manifests, data_root, work_dir / "rows_train", "train", pool, 4)
    self_generate([generated.name], generated.parent, work_dir / "rows_generated", "train", pool, 2)
    self_generate(manifests, data_root, work_dir / "rows_valid", "valid", pool, 1)


def score_run(variant: str, seed: int, rows: Any, args: argparse.Namespace, work_dir: Path) -> None:
    """Train and evaluate one projector; the result is one JSON file, which is never overwritten."""
    from nemo_desta.demo.score import Scores
    from nemo_desta.models.desta import DestaModel
    from nemo_desta.training.fit import fit

    splits = "valid" if args.valid else "test"
    run = work_dir / f"{variant}_{seed}"
    result = run / f"scores_{splits}.json"
    if result.exists():
        return
    started = time.perf_counter()
    encoders = "encoders_random" if variant == "random" else "encoders"
    overrides = [
        f"data_root={args.data_root}",
        f"work_dir={work_dir}",
        f"seed={seed}",
        f"exp_manager.exp_dir={run}",
        f"model.perception.encoders.whisper.path={work_dir}/{encoders}/whisper",
        f"model.perception.encoders.beats.path={work_dir}/{encoders}/beats.pt",
        *VARIANTS[variant],
        *args.overrides,
    ]
    folder = run / "training" / "model"
    model = (
        DestaModel.from_pretrained(folder, device="cpu") if folder.exists() else fit(compose("real_audio", overrides))
    )
    if model is None:
        raise SystemExit("stopped; give the same command again to resume")
    trained_secs, before = time.perf_counter() - started, text_answers(model)
    scores = Scores()
    for name, corpora, task, chosen in TESTS:
        chosen = ("valid",) if args.valid else chosen
        test_rows = [r for corpus in corpora for r in rows[corpus] if r["split"] in chosen]
        train_rows = [r for corpus in corpora for r in rows[corpus] if r["split"] == "train"]
        scores.score(model, test_rows, task, args.data_root, name=name)
        if variant == "fused" and seed == args.seeds[0]:
            scores.cascade(model, test_rows, task, name=name)
            scores.probe(train_rows, test_rows, task, args.data_root, name=name)
    print(f"\n{variant}, seed {seed} ({splits}), {time.perf_counter() - started:.0f} s\n{scores}\n", flush=True)
    record = {
        "variant": variant,
        "seed": seed,
        "splits": splits,
        "overrides": list(args.overrides),
        "train_secs": round(trained_secs, 1),
        "text_unchanged": before == text_answers(untrained_llm()),
        "tasks": {r.task: {"n": r.accuracy.total, "accuracy": r.accuracy.value, "unparsed": r.accuracy.unparsed,
                           "constant": r.constant[1], "shuffled": list(r.shuffled)} for r in scores.results},
        "columns": scores.columns,
    }  # fmt: skip
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(record, indent=1) + "\n")
    (run / f"answers_{splits}.jsonl").write_text("".join(json.dumps(a) + "\n" for a in scores.answers))


def text_answers(model: Any) -> list[list[int]]:
    """Greedy ids for text-only prompts, from a whole model or from the LLM alone."""
    questions = ["Which digit is spoken?", "What is the sound?", "Describe the audio."]
    ids = []
    for question in questions:
        prompt = f"[00:00-00:01] seven (Gender: male, Duration: 1s)\n{question}"
        text = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        tokens = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids.append(model.llm.generate(input_ids=tokens, max_new_tokens=24, do_sample=False)[0].tolist())
    return ids


def untrained_llm() -> Any:
    """The shipped LLM without projector and encoders."""
    from types import SimpleNamespace

    from nemo_desta.recipes.engines import HFEngine

    engine = HFEngine.from_pretrained(LLM)
    return SimpleNamespace(llm=engine.model, tokenizer=engine.tokenizer)


def summary(work_dir: Path, args: argparse.Namespace) -> str:
    """All runs as one table: means over seeds of the fused model, and the single runs."""
    from nemo_desta.evaluation.attributes import render_table

    splits = "valid" if args.valid else "test"
    records = [json.loads(path.read_text()) for path in sorted(work_dir.glob(f"*/scores_{splits}.json"))]
    fused = [r for r in records if r["variant"] == "fused"]
    header = [
        "task",
        "n",
        "mean",
        "seeds",
        *(v for v in VARIANTS if v != "fused"),
        "constant",
        "shuffled",
        "probe",
        "cascade",
    ]
    lines = []
    for name, *_ in TESTS:
        values = [r["tasks"][name]["accuracy"] for r in fused]
        if not values:
            continue
        single = {r["variant"]: r["tasks"][name]["accuracy"] for r in records}
        columns = {key: value for r in fused for key, value in r["columns"].items()}
        first = fused[0]["tasks"][name]
        cells = [str(first["n"]), f"{sum(values) / len(values):.3f}", " ".join(f"{v:.3f}" for v in values)]
        cells += [f"{single[v]:.3f}" if v in single else "-" for v in VARIANTS if v != "fused"]
        cells += [
            f"{first['constant']:.3f}",
            f"{sum(r['tasks'][name]['shuffled'][0] for r in fused) / len(fused):.3f}",
        ]
        cells += [f"{columns[c][name]:.3f}" if c in columns else "-" for c in ("linear probe", "text cascade")]
        lines.append([name, *cells])
    unchanged = all(r["text_unchanged"] for r in records)
    return f"{render_table(header, lines)}\n\ntext answers of the LLM before and after training identical: {unchanged}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder that holds manifests/ and audio/")
    parser.add_argument("--work-dir", default="runs/real_audio")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder-steps", type=int, default=2400)
    parser.add_argument("--valid", action="store_true", help="score the validation splits, to choose settings")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="what to run")
    parser.add_argument("overrides", nargs="*", help="key=value of conf/real_audio.yaml")
    return parser.parse_args()


if __name__ == "__main__":
    main()
