"""The papers' claim at this scale: targets that the LLM wrote itself against targets in another style.

    python benchmarks/target_source.py [--work-dir runs/target_source] [--seeds 0 1 2] [--steps 200]

One projector is trained twice per seed with equal steps on the same clips and plain questions: on the frozen LLM's own
answers, and on the true answers in a chatty style that the LLM can read, and write when asked, but does not write
unasked. Reported: perplexity of the targets under the frozen LLM, whether answers to unseen clips obey formats that
alignment never saw, and whether what they say is right. A mechanism check at two million parameters, no more.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.demo.corpus import MANIFEST, build_corpus
from nemo_desta.demo.pool import prompt_pool
from nemo_desta.demo.prompts import apply_format, follows_format, make_prompt
from nemo_desta.demo.run import compose, quiet, self_generate
from nemo_desta.demo.world import gold, parse_answer

SOURCES = ("self-generated", "foreign style")
FORMATS = ("plain", "short", "caps", "json", "prefix", "end", "think")
#: Tasks that are trained and asked: closed values, heard by the demo's encoders.
TASKS = ("gender", "sound_class", "instrument", "language")


def main() -> None:
    args = _parse()
    quiet()
    work_dir = Path(args.work_dir)
    manifest = build_corpus(work_dir / "corpus", seed=0)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    write_self_generated(work_dir)
    write_foreign(work_dir)
    records = []
    for seed in args.seeds:
        for source in SOURCES:
            records.append(run(source, seed, rows, work_dir, args.steps))
            print(records[-1], flush=True)
    print("\n" + table(records))
    print(plot(records, work_dir / "target_source.png"))


def rows_file(work_dir: Path, source: str) -> Path:
    name = source.split()[0].replace("-", "_")
    return work_dir / (f"rows_{name}/rows/train-00000.jsonl" if source == SOURCES[0] else f"rows_{name}.jsonl")


def write_self_generated(work_dir: Path) -> None:
    """Plain questions, answered by the frozen LLM from the descriptions."""
    pool = [prompt for prompt in prompt_pool(("plain",), TASKS) if prompt.requires]
    self_generate([MANIFEST], work_dir / "corpus", work_dir / "rows_self_generated", "train", pool, 3)


def write_foreign(work_dir: Path) -> None:
    """The same rows and prompts with the same content in the chatty style."""
    lines = []
    for line in rows_file(work_dir, SOURCES[0]).read_text().splitlines():
        row = json.loads(line)
        response = apply_format("chatty", row["response"], {})
        lines.append(json.dumps({**row, "response": response, "llm": "style writer"}, ensure_ascii=False) + "\n")
    rows_file(work_dir, SOURCES[1]).write_text("".join(lines), encoding="utf-8")


def run(source: str, seed: int, rows: Sequence[Mapping[str, Any]], work_dir: Path, steps: int) -> dict[str, Any]:
    """Train one projector and ask it in every format; reuses a finished run."""
    from nemo_desta.training.fit import fit

    folder = work_dir / f"{source.split()[0]}_{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    overrides = [
        f"work_dir={work_dir}",
        f"seed={seed}",
        f"exp_manager.exp_dir={folder}",
        f"data.train_ds.input_cfg.0.rows={rows_file(work_dir, source)}",
        f"data.validation_ds.datasets.demo.input_cfg.0.rows={rows_file(work_dir, SOURCES[0])}",
        f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0",
    ]
    model = fit(compose("demo", overrides)).eval()
    record: dict[str, Any] = {"source": source, "seed": seed, "steps": steps}
    record["perplexity"] = perplexity(model, rows_file(work_dir, source))
    for name in FORMATS:
        record[name] = ask(model, rows, name, work_dir / "corpus")
    result.write_text(json.dumps(record, indent=1) + "\n")
    return record


def perplexity(model: Any, path: Path, limit: int = 256) -> float:
    """exp of the mean loss per target token when the LLM reads the description instead of hearing."""
    import torch

    from nemo_desta.data.dataset import LoadedRow, collate

    rows = [json.loads(line) for line in path.read_text().splitlines()[:limit]]
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(rows), 32):
            loaded = []
            for row in rows[first : first + 32]:
                text = f"{row['seed_description']}\n{row['prompt']}"
                example = model.prompts.example({**row, "messages": [{"role": "user", "content": text}]})
                loaded.append(LoadedRow(row["id"], "text", example.ids, example.prompt_len, []))
            loss, num_tokens, _ = model.loss(collate(loaded))
            total, count = total + loss.item(), count + num_tokens
    return math.exp(total / count)


def ask(model: Any, rows: Sequence[Mapping[str, Any]], name: str, corpus: Path) -> dict[str, float]:
    """Test clips asked in one format: share that obeys it, share whose content is right, and both at once."""
    from nemo_desta.evaluation.ask_model import ask_about_clips

    asked = [(row, task) for task in TASKS for row in rows if row["split"] == "test" and gold(row, task)]
    asked = asked[:: max(1, len(asked) // 160)]
    answers = ask_about_clips(
        model,
        [corpus / row["audio"] for row, _ in asked],
        [make_prompt(task, format=name).text for _, task in asked],
        lengths=[row["duration"] for row, _ in asked],
        progress=False,
    )
    obeys = [follows_format(name, answer) for answer in answers]
    right = [parse_answer(task, answer) == gold(row, task) for (row, task), answer in zip(asked, answers, strict=True)]
    both = sum(o and r for o, r in zip(obeys, right, strict=True))
    return {"obeys": sum(obeys) / len(asked), "right": sum(right) / len(asked), "both": both / len(asked)}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds with the range: perplexity, content of plain answers, obedience per format."""
    from nemo_desta.evaluation.attributes import render_table

    header = ["targets", "seeds", "perplexity", "plain, right", *(f"{name}, obeys" for name in FORMATS)]
    lines = []
    for source in SOURCES:
        own = [r for r in records if r["source"] == source]
        columns = [[r["perplexity"] for r in own], [r["plain"]["right"] for r in own]]
        columns += [[r[name]["obeys"] for r in own] for name in FORMATS]
        lines.append([source, str(len(own)), *(_mean_and_range(column) for column in columns)])
    return render_table(header, lines)


def plot(records: Sequence[Mapping[str, Any]], picture: Path) -> Path:
    """Obedience per format, both target sources side by side, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5))
    for shift, source, colour in ((-0.2, SOURCES[0], "tab:green"), (0.2, SOURCES[1], "tab:orange")):
        own = [r for r in records if r["source"] == source]
        places = [i + shift for i in range(len(FORMATS))]
        means = [sum(r[name]["obeys"] for r in own) / len(own) for name in FORMATS]
        axes.bar(places, means, width=0.38, color=colour, alpha=0.6, label=f"{source} targets")
        for r in own:
            axes.scatter(places, [r[name]["obeys"] for name in FORMATS], color=colour, s=12, zorder=3)
    axes.set_xticks(range(len(FORMATS)), FORMATS)
    axes.set(ylabel="share of answers that obey", ylim=(0, 1.05), title="formats that alignment never saw")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def _mean_and_range(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    digits = 2 if mean < 100 else 0
    return f"{mean:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", default="runs/target_source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    main()
