"""Measures the time of scoring 100,000 synthetic multiple-choice answers in both modes.

    python -m benchmarks.scoring [--answers 100000] [--long 0.1]

No two items share their options, so no cache helps. Answers are letters, texts and sentences of many forms; a share of
``--long`` are reasoning of about 400 words that ends in an answer. One process. The report has wall time and CPU time;
compare CPU time on a shared machine.
"""

import argparse
import json
import os
import platform
import random
import time
from typing import Any

from nemo_desta.evaluation.scores import MODES, score

BENCHMARKS = {"mmau": "model_output", "mmar": "answer_prediction", "mmsu": "response", "air_bench": "response"}
FORMS = (
    "{text}",
    "{letter}",
    "({letter}) {text}",
    "{letter}. {text}",
    'The correct answer is: "{text}".',
    "The answer is {letter}.",
    "I hear it clearly, so I would say {text} fits best.",
    "It is not {other}; it is {text}.",
    "{text} or {other}",
    "\\boxed{{{letter}}}",
    "<answer>{text}</answer>",
    "I'm sorry, but I cannot listen to audio files.",
)
SYLLABLES = ("ba", "cor", "di", "fen", "gu", "har", "il", "jo", "kan", "lo", "mir", "no", "pel", "qua", "ri", "sto")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line; returns what is printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--long", type=float, default=0.1, help="share of answers that reason at length")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "answers": args.answers}
    report["python"] = platform.python_version()
    for benchmark, key in BENCHMARKS.items():
        items = make_items(benchmark, key, args.answers, args.long)
        for mode in MODES:
            wall, cpu = time.perf_counter(), time.process_time()
            scores = score(benchmark, items, mode=mode)
            report[f"{benchmark}_{mode}_secs"] = round(time.perf_counter() - wall, 2)
            report[f"{benchmark}_{mode}_cpu_secs"] = round(time.process_time() - cpu, 2)
            report[f"{benchmark}_{mode}_counted"] = sum(verdict is not None for verdict in scores.verdicts)
    print(json.dumps(report, indent=1))
    return report


def make_items(benchmark: str, key: str, count: int, long: float, *, seed: int = 0) -> list[dict[str, Any]]:
    """``count`` items of a benchmark with answers; the same for the same seed."""
    rng = random.Random(seed)
    items = []
    for i in range(count):
        options = [_phrase(rng, f"{i}{letter}") for letter in "abcd"]
        truth = rng.randrange(4)
        chosen, other = rng.sample(range(4), 2)
        answer = rng.choice(FORMS).format(letter="ABCD"[chosen], text=options[chosen], other=options[other])
        if rng.random() < long:
            weighed = " ".join(f"The sound may be {rng.choice(options)} or {_phrase(rng, '')}." for _ in range(50))
            answer = f"{weighed}\nThe answer is: {options[chosen]}"
        item = {"id": f"item-{i}", "question": "Which one?", key: answer}
        if benchmark in ("mmau", "mmar"):
            item |= {"choices": options, "answer": options[truth], "task": "sound", "modality": "sound"}
        else:
            item |= {f"choice_{letter}": option for letter, option in zip("abcd", options, strict=True)}
            item |= {"answer_gt": options[truth], "task_name": "task", "dataset_name": "set", "category": "c"}
        items.append(item)
    return items


def _phrase(rng: random.Random, last: str) -> str:
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
    return " ".join(["a", *words, last]).strip()


if __name__ == "__main__":
    main()
