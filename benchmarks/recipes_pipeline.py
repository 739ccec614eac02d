"""Cost of the recipe's pipeline without the LLM: rows per second with default gates, and memory by number of rows.

    python -m benchmarks.recipes_pipeline [--rows 20000] [--memory-rows 1000 100000] [--http-rows 6000]

All parts but the LLM are real: a JSONL corpus, FLAC files whose headers are read, the prompt pool and composer, all
default gates, journals, finishing, the checks across rows. The LLM answers at once, with 20 to 60 words. Over HTTP it
is the slow and faulty server of `recipes_engine`, and the result is the share of the rate that this server allows.
"""

import argparse
import gc
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.recipes_engine import TOKENIZER, faulty_server, ideal_rate
from nemo_desta.recipes.engines import Generation, OpenAIEngine, Request

WORDS = (
    "the voice in this recording sounds calm and clear while somebody speaks about the weather near an open window "
    "there is a soft hum of traffic behind her she pauses twice before she goes on and her tone stays friendly"
).split()
#: Number of files that the clips share; headers are still read once per clip.
FILES = 500


class Instant:
    """An LLM that answers at once; the seed decides about the answer."""

    name, revision, concurrency, prompts = "instant", "0", 64, None

    def __init__(self) -> None:
        rng = random.Random(0)
        self.texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))).capitalize() + "." for _ in range(5000)]

    async def generate(self, request: Request) -> Generation:
        return Generation(self.texts[request.seed % len(self.texts)], False, None, 100, 50)

    async def close(self) -> None:
        pass


def make_corpus(folder: Path, clips: int) -> None:
    """A manifest of ``clips`` over ``FILES`` FLAC files of two seconds."""
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        soundfile.write(folder / f"audio/{number}.flac", rng.normal(0, 0.1, 32_000), 16_000)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(clips):
            attributes = {"gender": ("male", "female")[number % 2], "emotion": ("calm", "happy")[number % 3 % 2]}
            row: dict[str, Any] = {"id": f"c{number}", "audio": f"audio/{number % FILES}.flac", "duration": 2.0}
            row |= {"domain": "speech", "transcript": f"sentence number {number} is spoken here"}
            file.write(json.dumps({**row, "attributes": attributes, "group": f"s{number // 50}"}) + "\n")


def run(corpus: Path, output: Path, engine: Any, **settings: Any) -> dict[str, float]:
    """Seconds of the plan, the rows and the end, and rows per second over all three. ``settings``: of the recipe."""
    from nemo_desta.recipes.build import build_input, build_prompts, build_stage, cross_checks, units
    from nemo_desta.recipes.pipeline import RecipeFolder, finish, run_shards, write_plan
    from nemo_desta.recipes.settings import identity, parse_recipe

    config = parse_recipe(
        {
            "corpus": "corpus.jsonl",
            "data_root": str(corpus),
            "splits": None,
            "llm": "instant",
            "output": str(output),
            "prompts_per_clip": 2,
            **settings,
        }
    )
    corpora, roots = build_input(config)
    pool = build_prompts(config)
    folder = RecipeFolder(output)
    folder.claim(identity(config))
    began, marks = time.time(), [time.perf_counter()]
    shards = write_plan(folder, units(config, corpora, roots), shard_size=config.shard_size, progress=False)
    stage = build_stage(config, corpora, roots, pool, (engine, engine))
    gc.freeze()
    marks.append(time.perf_counter())
    cpu = time.process_time()
    run_shards(folder, stage, range(shards), concurrency=engine.concurrency, engines=[engine], progress=False)
    cpu = time.process_time() - cpu
    marks.append(time.perf_counter())
    summary = finish(folder, cross_checks(config), progress=False)
    marks.append(time.perf_counter())
    rows = summary.written + summary.num_rejected
    plan, made, end = (b - a for a, b in zip(marks, marks[1:], strict=False))
    return {
        "rows": rows,
        "rejected": summary.num_rejected,
        "plan_secs": round(plan, 2),
        "rows_secs": round(made, 2),
        "rows_cpu_secs": round(cpu, 2),
        "finish_secs": round(end, 2),
        "began": began,
        "ended": time.time(),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def measure(rows: int, url: str = "", processes: int = 1) -> dict[str, float]:
    """`run` in several processes that share one folder, over a new corpus."""
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "corpus", rows // 2)
        command = [sys.executable, "-m", "benchmarks.recipes_pipeline", "--one", folder, "--url", url]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        results = [json.loads(process.communicate()[0]) for process in running]
    total = max(results, key=lambda result: result["rows"])  # the last process has written the rows
    seconds = max(r["ended"] for r in results) - min(r["began"] for r in results)
    return {"processes": processes, **total, "rows_per_sec": round(total["rows"] / seconds)}


def measure_http(rows: int) -> str:
    """Rows per second, divided by the rate that the server allows."""
    with faulty_server(delay=0.1) as url:
        result = measure(rows, url)
    rate, ideal = result["rows"] / result["rows_secs"], ideal_rate(64, 0.1)
    return f"{result}\n  {rate:.0f} of {ideal:.0f} rows per second: {rate / ideal:.3f} of the ideal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--memory-rows", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--http-rows", type=int, default=20_000)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engine = OpenAIEngine(args.url, "scripted", tokenizer=TOKENIZER) if args.url else Instant()
        print(json.dumps(run(args.one / "corpus", args.one / "out", engine)))
        return
    print("speed:", measure(args.rows), measure(args.rows, processes=2), sep="\n  ")
    print("over HTTP:", measure_http(args.http_rows))
    few, many = (measure(rows) for rows in args.memory_rows)
    print("memory:", few, many, sep="\n  ")
    print(f"{many['rows']} rows take {many['peak_mib'] - few['peak_mib']:.1f} MiB more than {few['rows']} rows")


if __name__ == "__main__":
    main()
