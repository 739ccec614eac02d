"""``make demo``: the whole pipeline on a laptop, with the code that a cluster runs.

generate a corpus -> the small LLM generates the rows -> train the projector -> questions about unseen clips -> a
table, a picture, three conversations. A second run reuses finished stages; a new ``--work-dir`` starts afresh.
"""

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_desta.demo.corpus import MANIFEST, build_corpus
from nemo_desta.demo.pool import prompt_pool
from nemo_desta.recipes.prompts import Prompt
from nemo_desta.sources import conf_folder

logger = logging.getLogger(__name__)

LLM = "package:demo/assets/llm"
#: Off: the small LLM mixes five languages in one sentence, and "not clear" is a correct answer.
GATES = {"language": None, "refusals": None}
#: Tasks of the evaluation; training uses all tasks.
TASKS = ("digit", "gender", "language", "sound_class", "instrument", "tempo", "domain")
MAX_CLIPS_PER_TASK = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parse(arguments)
    quiet()
    started = time.perf_counter()
    work_dir = Path(args.work_dir)

    def stage(number: int, title: str) -> None:
        print(f"\n[{number}/4] {title}  ({time.perf_counter() - started:.0f} s so far)", flush=True)

    stage(1, f"a labelled corpus of {args.clips} clips")
    manifest = build_corpus(work_dir / "corpus", seed=args.seed, clips=args.clips)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]

    stage(2, "the frozen LLM writes its own training targets")
    write_rows(rows, work_dir, prompts_per_clip=args.prompts_per_clip, seed=args.seed)

    stage(3, f"training the projector, {args.steps} steps")
    model = train(work_dir, steps=args.steps, seed=args.seed)

    stage(4, "questions about clips of unseen speakers and recordings")
    scores = evaluate(model, rows, work_dir)

    from nemo_desta.demo.report import conversations, plot_loss, summary

    print("\n" + conversations(model, rows, work_dir / "corpus"))
    picture = plot_loss(work_dir / "training" / "records" / "steps.jsonl", work_dir / "loss.png")
    print("\n" + summary(model, scores, picture, work_dir, seconds=time.perf_counter() - started))
    return 0


def write_rows(rows: Sequence[Mapping[str, Any]], work_dir: Path, *, prompts_per_clip: int, seed: int) -> None:
    """Self-generate the rows of the train and valid splits; resumes after an interruption."""
    pool = prompt_pool(("plain", "prefix"))
    for split, per_clip in (("train", prompts_per_clip), ("valid", 1)):
        self_generate([MANIFEST], work_dir / "corpus", work_dir / f"rows_{split}", split, pool, per_clip, seed=seed)


def self_generate(
    manifests: Sequence[str],
    data_root: str | Path,
    output: Path,
    split: str,
    pool: Sequence[Prompt],
    prompts_per_clip: int,
    *,
    seed: int = 0,
) -> None:
    """Rows of one split of ``manifests`` (below ``data_root``), generated greedily by the demo's LLM."""
    from nemo_desta.recipes.run import run_recipe

    summary = run_recipe(
        {
            "corpus": [str(Path(data_root) / manifest) for manifest in manifests],
            "data_root": str(data_root),
            "splits": [split],
            "prompts": [asdict(prompt) for prompt in pool],
            "prompts_per_clip": prompts_per_clip,
            "llm": LLM,
            "engine": {"name": "hf", "batch_size": 128},
            "request": {"sampling": {"max_new_tokens": 64, "temperature": 0.0}},
            "gates": GATES,
            "seed": seed,
            "output": str(output),
            "report": False,
        }
    )
    print(f"{split}: {summary}")


def train(work_dir: Path, *, steps: int, seed: int) -> Any:
    """Train with conf/demo.yaml, or open the finished model of an earlier run with these settings."""
    from nemo_desta.models.desta import DestaModel
    from nemo_desta.training.fit import fit

    folder, stamp = work_dir / "training" / "model", work_dir / "training" / "finished.json"
    settings = {"steps": steps, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == settings:
        print(f"reusing {folder}")
        return DestaModel.from_pretrained(folder, device="cpu")
    model = fit(compose("demo", [f"work_dir={work_dir}", f"trainer.max_steps={steps}", f"seed={seed}"]))
    if model is None:
        raise SystemExit("stopped; give the same command again to resume")
    stamp.write_text(json.dumps(settings))
    return model.eval()


def compose(name: str, overrides: Sequence[str]) -> Any:
    """A config of ``conf/`` with overrides, as the command line would compose it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base=None):
        return hydra_compose(name, overrides=list(overrides))


def evaluate(model: Any, rows: Sequence[Mapping[str, Any]], work_dir: Path) -> Any:
    """Scores of every task on the test split; answers go to ``answers.jsonl``."""
    from nemo_desta.demo.score import Scores, known

    corpus, scores = work_dir / "corpus", Scores()
    for task in TASKS:
        train_rows = [row for row in rows if row["split"] == "train"]
        test_rows = known([row for row in rows if row["split"] == "test"], task)
        test_rows = test_rows[:: -(-len(test_rows) // MAX_CLIPS_PER_TASK)]
        print(f"  {task}: {len(test_rows)} clips", flush=True)
        scores.score(model, test_rows, task, corpus)
        scores.cascade(model, test_rows, task)
        scores.probe(train_rows, test_rows, task, corpus)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in scores.answers)
    (work_dir / "answers.jsonl").write_text(lines, encoding="utf-8")
    return scores


def quiet() -> None:
    """Show only progress bars, results, warnings and errors."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.WARNING)
    from nemo.utils import logging as nemo_logging
    from transformers.utils import logging as transformers_logging

    nemo_logging.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning", "lightning.pytorch", "nemo_desta", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="desta demo", description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", default="runs/demo", help="where everything goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=1500, help="clips of the corpus (default: %(default)s)")
    parser.add_argument(
        "--prompts-per-clip", type=int, default=4, help="rows per training clip (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    return parser.parse_args(arguments)
