"""Thoughts as targets: those of an LLM that read a description, or the same rewritten as if it had heard the clip.

    python benchmarks/target_thoughts.py [--work-dir runs/target_thoughts] [--seeds 0 1 2] [--steps 200]

ALARM's claim at demo scale, with the demo's reasoning LLM (two million parameters). One projector per source and seed,
with equal clips, prompts and steps: (self-generated) the LLM's answers, whose thoughts speak of a description;
(self-rephrased) the same, rewritten by the same LLM. Reported: perplexity of the targets, and of the answers to
unseen clips: right ones, those that think first, and those that speak of a text nobody gave.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.target_source import TASKS, ask_test_clips, mean_and_range, parser, perplexity, train
from nemo_desta.demo.corpus import MANIFEST, build_corpus
from nemo_desta.demo.pool import prompt_pool
from nemo_desta.demo.run import GATES, compose, quiet
from nemo_desta.demo.world import gold, parse_answer

SOURCES = ("self-generated", "self-rephrased")
LLM = "package:demo/assets/llm_reasoning"
MEASURES = ("right", "thinks", "speaks of a text")


def main() -> None:
    args = parser(__doc__, "runs/target_thoughts").parse_args()
    quiet()
    work_dir = Path(args.work_dir)
    rows = [json.loads(line) for line in build_corpus(work_dir / "corpus", seed=0).read_text().splitlines()]
    files = write_sources(work_dir)
    records = [run(source, seed, rows, files, work_dir, args.steps) for seed in args.seeds for source in SOURCES]
    print("\n" + table(records))


def write_sources(work_dir: Path) -> dict[str, Path]:
    """Source -> its rows. Both hold the same clips and prompts: those whose rewriting passed the gates."""
    from omegaconf import OmegaConf

    from nemo_desta.recipes.run import run_recipe

    shared = {"llm": LLM, "engine": {"name": "hf", "batch_size": 128}, "report": False, "max_attempts": 1}
    limits = {"max_new_tokens": 96, "temperature": 0.0}
    folders = {source: work_dir / source for source in SOURCES}
    run_recipe(
        shared
        | {
            "corpus": [str(work_dir / "corpus" / MANIFEST)],
            "data_root": str(work_dir / "corpus"),
            "splits": ["train"],
            "prompts": [asdict(prompt) for prompt in prompt_pool(("plain",), TASKS) if prompt.requires],
            "prompts_per_clip": 1,
            "request": {"template": "{description}\n{prompt}", "sampling": limits},
            "gates": GATES | {"leak": None},
            "output": str(folders[SOURCES[0]]),
        }
    )
    heard = OmegaConf.to_container(compose("recipes/demo_rephrase", []).recipes.rephrase, resolve=True)
    run_recipe(
        shared
        | {
            "rows": str(folders[SOURCES[0]]),
            "rephrase": heard,
            "gates": GATES,
            "output": str(folders[SOURCES[1]]),
        }
    )
    found = {source: _by_question(folder / "rows/train-00000.jsonl") for source, folder in folders.items()}
    both = found[SOURCES[0]].keys() & found[SOURCES[1]].keys()
    print(f"{len(both)} of {len(found[SOURCES[0]])} answers were rewritten and passed the gates")
    files = {source: work_dir / f"{source}.jsonl" for source in SOURCES}
    for source, file in files.items():
        file.write_text("".join(line for key, line in found[source].items() if key in both), encoding="utf-8")
    return files


def _by_question(file: Path) -> dict[tuple[str, str], str]:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return {((row := json.loads(line))["id"], row["prompt"]): line for line in lines}


def run(
    source: str, seed: int, rows: Sequence[Mapping[str, Any]], files: Mapping[str, Path], work_dir: Path, steps: int
) -> dict[str, Any]:
    """Train one projector and ask it about test clips; reuses a finished run."""
    folder = work_dir / f"{source}_{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    rows_file = files[source]
    model = train(work_dir, folder, rows_file, rows_file, seed, steps, f"model.llm.path={LLM}")
    record = {"source": source, "seed": seed, "perplexity": perplexity(model, rows_file)}
    record |= ask(model, rows, work_dir / "corpus")
    result.write_text(json.dumps(record, indent=1) + "\n")
    print(record, flush=True)
    return record


def ask(model: Any, rows: Sequence[Mapping[str, Any]], corpus: Path) -> dict[str, float]:
    """Shares of the answers to plain questions about test clips that are right, think, and speak of a text."""
    from nemo_desta.recipes.gates.leak import LeakCheck

    asked, answers = ask_test_clips(model, rows, corpus)
    leak = LeakCheck()
    thoughts = [getattr(answer, "thinking", None) or "" for answer in answers]
    right = [parse_answer(task, answer) == gold(row, task) for (row, task), answer in zip(asked, answers, strict=True)]
    thinks = [bool(thought.strip()) for thought in thoughts]
    reads = [
        leak.check({"response": f"{thought} {answer}"}) is not None
        for thought, answer in zip(thoughts, answers, strict=True)
    ]
    return {name: sum(found) / len(asked) for name, found in zip(MEASURES, (right, thinks, reads), strict=True)}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds with the range."""
    from nemo_desta.evaluation.attributes import render_table

    columns = ("perplexity", *MEASURES)
    lines = []
    for source in SOURCES:
        own = [record for record in records if record["source"] == source]
        lines.append([source, str(len(own)), *(mean_and_range([record[name] for record in own]) for name in columns)])
    return render_table(["targets", "seeds", *columns], lines)


if __name__ == "__main__":
    main()
