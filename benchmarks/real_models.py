"""A real LLM learns to hear, with real weights and recordings: rows, features, training, scores, in one command.

    python -m benchmarks.real_models --llm FOLDER --whisper FOLDER --data-root FOLDER [--beats FILE] [--seeds 0 1 2]

It runs this package's own commands (`desta generate`, `features`, `train`, `evaluate`) on the corpora of
`real_audio`: which prompts the LLM can read (the probe), rows of each task, the encoders' features, one projector per
seed, scores on speakers and recordings that the training never heard. Every stage resumes, and one whose output exists
is skipped.
``results.json`` and ``results.md`` in the work folder hold the table and the wall time of each stage.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_models_scores import TASKS, free_answers, references, summary, write_tests

#: Task -> (corpora, prompts per clip, share of the training batches, tokens of an answer). A longer answer is dropped:
#: in rambling answers little of the loss is about the sound. About sounds the LLM has no shorter ones for every class.
ROWS = {
    "digit": (("fsdd",), 1, 0.35, 16),
    "sound_class": (("esc10",), 3, 0.25, 32),
    "emotion": (("ravdess",), 2, 0.35, 16),
    "transcript": (("ravdess", "librispeech_other", "ljspeech"), 1, 0.05, 48),
    "gender": (("ravdess", "librispeech_clean", "librispeech_other"), 1, 0.15, 16),
}
#: Share of right answers in the probe that a prompt needs, where its task has one that reaches it.
MIN_RIGHT = 0.8
#: Its rows are written only if the probe finds such a prompt.
OPTIONAL = ("gender",)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--tasks", nargs="+", choices=ROWS, default=list(ROWS), help="what is taught (default: all)")
    args = command.parse_args()
    work = Path(args.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    run = Stages(work)
    run("probe", lambda: probe(args, work), work / "pool.yaml")
    tasks = [task for task in split_pool(work) if task in args.tasks]
    for task in tasks:
        for split in ("train", "valid"):
            if split == "train" or task != "sound_class":  # the few sounds of "valid" are scored
                run(f"rows {task} {split}", lambda t=task, s=split: rows(t, s, args, work), rows_of(work, task, split))
    write_tests(Path(args.data_root), work)
    run("features", lambda: features(training(args, work, tasks, 0), work), work / "features.done")
    for seed in args.seeds:
        folder = work / f"seed_{seed}"
        model = folder / "laptop" / "model"
        run(f"training {seed}", lambda s=seed: desta("train", *training(args, work, tasks, s)), model / "config.json")
        for name, settings in evaluations(work, tasks, transcripts=seed == args.seeds[0]).items():
            found = folder / name / "scores.json"
            if seed != args.seeds[0]:
                share_cascades(work / f"seed_{args.seeds[0]}" / name, found.parent)
            text = name == "attributes"
            run(
                f"{name} {seed}",
                lambda s=settings, o=found.parent, m=model, t=text: evaluate(m, o, s, args, text=t),
                found,
            )
        run(f"free answers {seed}", lambda m=model, f=folder: free_answers(m, f, args), folder / "free_answers.jsonl")
    first = work / f"seed_{args.seeds[0]}" / "laptop" / "model"
    run("references", lambda: references(first, args, work), work / "references.json")
    print(summary(args, work, run.seconds))


class Stages:
    """Runs what is not done, and keeps the wall time of each stage over all starts of the command."""

    def __init__(self, work: Path) -> None:
        self.file = work / "seconds.json"

    @property
    def seconds(self) -> dict[str, float]:
        """By name of the stage; other processes may work at other seeds of the same folder."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def __call__(self, name: str, stage: Callable[[], Any], output: Path) -> None:
        if output.exists():
            return
        print(f"== {name} ({time.strftime('%H:%M:%S')})", flush=True)
        started = time.monotonic()
        try:
            stage()
        finally:
            seconds = self.seconds
            seconds[name] = round(seconds.get(name, 0) + time.monotonic() - started, 1)
            self.file.write_text(json.dumps(seconds, indent=1) + "\n")
        if not output.exists():
            raise SystemExit(f"{name}: {output} is missing; does another process work in the same folder?")


def desta(*words: str) -> None:
    """One command of this package. Its exit status ends the benchmark; the same command line resumes."""
    print("desta", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "nemo_desta", *words], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"desta {words[0]} ended with status {done.returncode}; the same command resumes")


def features(words: Sequence[str], work: Path) -> None:
    """The encoders' outputs for all rows."""
    desta("features", *words)
    (work / "features.done").touch()


def manifests(args: argparse.Namespace, corpora: Sequence[str]) -> str:
    return "[" + ",".join(f"{args.data_root}/manifests/{name}.jsonl" for name in corpora) + "]"


def probe(args: argparse.Namespace, work: Path) -> None:
    """Which of the plain prompts about the tasks the LLM answers rightly from descriptions."""
    from nemo_desta.recipes.prompts import prompt_set

    prompts = [p for p in prompt_set("plain") if p.requires and set(p.requires) <= set(ROWS)]
    plain = [{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(p).items() if v} for p in prompts]
    (work / "prompts.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    corpora = dict.fromkeys(name for some, *_ in ROWS.values() for name in some)
    desta("generate", "--config-name=probe", f"corpus={manifests(args, list(corpora))}", f"data_root={args.data_root}",
          f"llm={args.llm}", f"prompts={work}/prompts.yaml", f"engine.dtype={args.dtype}", "request.system=''",
          f"min_right={MIN_RIGHT}", f"output={work}/pool.yaml")  # fmt: skip


def split_pool(work: Path) -> list[str]:
    """One file of prompts per task, from the probe's; returns the tasks that have rows."""
    entries = yaml.safe_load((work / "pool.yaml").read_text())
    every = yaml.safe_load((work / "prompts.yaml").read_text())
    tasks = []
    for task in ROWS:
        chosen = [entry for entry in entries if task in entry["requires"]]
        if not chosen and task in OPTIONAL:
            continue
        chosen = chosen or [entry for entry in every if task in entry["requires"]]
        (work / f"prompts_{task}.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
        tasks.append(task)
    return tasks


def rows_of(work: Path, task: str, split: str) -> Path:
    return work / f"rows_{task}_{split}" / "rows"


def rows(task: str, split: str, args: argparse.Namespace, work: Path) -> None:
    """Self-generation of one task's rows."""
    corpora, per_clip, _, max_tokens = ROWS[task]
    desta("generate", "--config-name=laptop", f"corpus={manifests(args, corpora)}", f"data_root={args.data_root}",
          f"llm={args.llm}", f"prompts={work}/prompts_{task}.yaml", f"engine.dtype={args.dtype}", f"splits=[{split}]",
          f"request.max_new_tokens_by_kind={{ask: {max_tokens}}}",
          f"prompts_per_clip={per_clip if split == 'train' else 1}",
          f"output={rows_of(work, task, split).parent}")  # fmt: skip


def training(
    args: argparse.Namespace,
    work: Path,
    tasks: Sequence[str],
    seed: int,
    *,
    rows: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> list[str]:
    """The words of `desta train` and `desta features`; ``rows``: instead of the rows of the tasks."""
    train = [{"rows": f"{rows_of(work, task, 'train')}/*.jsonl", "weight": ROWS[task][2]} for task in tasks]
    valid = [f"{rows_of(work, task, 'valid')}/*.jsonl" for task in tasks if task != "sound_class"]
    inputs = [{"type": "desta", **one} for one in ([rows] if rows else train)]
    datasets = {"valid": {"input_cfg": [{"type": "desta", "rows": files} for files in valid]}}
    encoders = [f"model.perception.encoders.whisper.path={args.whisper}"]
    if args.beats:
        encoders.append(f"+model.perception.encoders.beats={{path: {args.beats}, layer_ids: [3, 6, 9, 12]}}")
    return [
        "--config-name=laptop",
        f"seed={seed}",
        f"exp_manager.exp_dir={folder or work / f'seed_{seed}'}",
        f"model.llm.path={args.llm}",
        f"model.llm.dtype={args.dtype}",
        *encoders,
        f"data.audio_roots.default={args.data_root}",
        f"data.train_ds.input_cfg={hydra_value(inputs)}",
        f"data.validation_ds.datasets={hydra_value(datasets)}",
        f"data.feature_cache.folder={work}/features",
        f"trainer.max_steps={args.steps}",
        *args.overrides,
    ]


def evaluations(work: Path, tasks: Sequence[str], *, transcripts: bool = False) -> dict[str, dict[str, Any]]:
    """Settings of the rows that are scored: the attributes, and repeating what is said. Each question is the wording
    that most training rows have. ``transcripts``: also with Whisper's transcript instead of the audio.
    """
    questions = {task: {"question": most_trained(work, task)} for task in tasks if task in TASKS}
    return {
        "attributes": {"corpus": str(work / "tests.jsonl"), "attributes": questions, "transcribe": False}
        | ({"transcripts": "whisper"} if transcripts else {}),
        "repeat": {"corpus": str(work / "tests_repeat.jsonl"), "question": most_trained(work, "transcript")},
    }


def most_trained(work: Path, task: str) -> str:
    """The prompt of most training rows of a task."""
    lines = [line for file in sorted(rows_of(work, task, "train").glob("*.jsonl")) for line in file.open()]
    return Counter(json.loads(line)["prompt"] for line in lines).most_common(1)[0][0]


def share_cascades(done: Path, folder: Path) -> None:
    """Give an evaluation the cascade's answers of another: the text LLM of all runs is the same, bit for bit.

    ``done`` and ``folder`` are the two evaluations, each beside its own ``laptop/model``, which the answers name.
    """
    old, new = (json.dumps(str(one.parent / "laptop" / "model")) for one in (done, folder))
    for answers in done.glob("rows/*/cascade/*.jsonl"):
        copy = folder / answers.relative_to(done)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(answers.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def evaluate(
    model: Path,
    output: Path,
    settings: dict[str, Any],
    args: argparse.Namespace,
    *,
    controls: int = 40,
    text: bool = True,
) -> None:
    """``controls``: clips per task that are asked about with silence and with another clip instead. ``text``: compare
    the answers to text with the bare LLM's."""
    settings = {**settings, "audio_root": args.data_root}
    desta("evaluate", f"model={model}", f"output={output}", f"rows={hydra_value(settings)}",
          f"controls={{items: {controls}}}", f"text_kept={'{prompts: 12, texts: 6}' if text else 'null'}",
          "sampling.max_new_tokens=48",
          f"feature_cache={hydra_value({'folder': f'{args.work_dir}/features'})}")  # fmt: skip


def hydra_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {hydra_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(hydra_value, value)) + "]"
    return json.dumps(value)


def parser(doc: str) -> argparse.ArgumentParser:
    """The options of this command and of `real_targets`."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--llm", required=True, type=_folder, help="folder of a causal LLM with a chat template")
    found.add_argument("--whisper", required=True, type=_folder, help="folder of a Whisper, decoder included")
    found.add_argument("--beats", help="a BEATs checkpoint; without it Whisper alone")
    found.add_argument("--data-root", required=True, type=_folder, help="folder that holds manifests/ and audio/")
    found.add_argument("--work-dir", default="runs/real_models", type=_path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--steps", type=int, default=750, help="training steps of each run (default: %(default)s)")
    found.add_argument("--dtype", default="fastest", help="of the LLM (default: %(default)s)")
    found.add_argument("overrides", nargs="*", help="key=value of conf/laptop.yaml")
    return found


def _path(given: str) -> str:
    return str(Path(given).expanduser().absolute())


def _folder(given: str) -> str:
    if not Path(_path(given)).is_dir():
        raise argparse.ArgumentTypeError(f"no folder {_path(given)}")
    return _path(given)


if __name__ == "__main__":
    main()
