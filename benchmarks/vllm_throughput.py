"""New tokens per second of a recipe with engine=vllm, compared with vLLM alone on the same requests in the same run.

    python -m benchmarks.vllm_throughput [--llm FOLDER] [--rows 64] [--max-new-tokens 48] [--rounds 2]

A whole recipe makes rows: descriptions, prompts, the chat template, all default gates, the journal; one attempt per
row, since a few second attempts at the end of so small a run would leave most of vLLM's batch empty. Its requests are
recorded (ids, limit, seed), and ``LLM.generate`` gets all of them in one call: the same prompts and lengths. The two
alternate, each with an empty prefix cache. Without ``--llm`` the LLM has random weights
and a head size that vLLM's build for CPUs knows.

vLLM runs in this process unless VLLM_ENABLE_V1_MULTIPROCESSING says otherwise. The processor time of the process then
holds the whole work of both sides, whatever else the machine does; its ratio stands beside that of the seconds.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.recipes_pipeline import make_corpus, run
from nemo_desta.recipes.engines import VLLMEngine, build_engine
from nemo_desta.recipes.engines.scheduler import Job
from nemo_desta.testing.models import tiny_llm

ENGINE_ARGS = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16, "dtype": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="hub id or folder")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engine-args", type=json.loads, default=ENGINE_ARGS)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    made = {"head_dim": 64, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    with tempfile.TemporaryDirectory() as folder:
        llm = args.llm or str(tiny_llm(Path(folder) / "llm", **made))
        engine = build_engine({"name": "vllm", "engine_args": args.engine_args}, llm)
        make_corpus(Path(folder) / "corpus", args.rows // 2)
        print(json.dumps(measure(engine, Path(folder), args.max_new_tokens, args.rounds), indent=1))


def measure(engine: VLLMEngine, folder: Path, max_new_tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens, seconds and processor seconds of both sides, summed over ``rounds``, and the ratios of their rates."""
    recorded: list[Job] = []
    ask = engine._ask
    engine._ask = lambda jobs: (recorded.extend(jobs), ask(jobs))[1]
    engine.llm.generate(["The first call", "is slower"], use_tqdm=False)
    request = {"sampling": {"max_new_tokens": max_new_tokens}}
    totals = {"recipe": [0.0, 0.0, 0.0], "vllm": [0.0, 0.0, 0.0]}
    for number in range(rounds):
        recorded.clear()
        engine.llm.reset_prefix_cache()
        tokens = engine.new_tokens
        made = run(folder / "corpus", folder / f"rows{number}", engine, request=request, max_attempts=1)
        found = [engine.new_tokens - tokens, made["rows_secs"], made["rows_cpu_secs"]]
        prompts = sum(len(job.ids) for job in recorded)
        print(
            f"round {number}: {made['rows']} rows, {len(recorded)} requests, {prompts} prompt tokens, {found[0]} new"
        )
        for side, values in (("recipe", found), ("vllm", alone(engine, recorded))):
            totals[side] = [a + b for a, b in zip(totals[side], values, strict=True)]
    del engine._ask
    rates = {side: (tokens / seconds, tokens / cpu) for side, (tokens, seconds, cpu) in totals.items()}
    return {
        "tokens, seconds, cpu_seconds": {side: [round(value, 2) for value in found] for side, found in totals.items()},
        "tokens_per_second": {side: round(rate, 1) for side, (rate, _) in rates.items()},
        "ratio": round(rates["recipe"][0] / rates["vllm"][0], 3),
        "ratio_by_cpu_seconds": round(rates["recipe"][1] / rates["vllm"][1], 3),
        "load_of_the_machine": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    }


def alone(engine: VLLMEngine, jobs: Sequence[Job]) -> list[float]:
    """Tokens, seconds and processor seconds of vLLM with the same requests in one call."""
    from vllm.inputs import TokensPrompt

    engine.llm.reset_prefix_cache()
    prompts, params = [TokensPrompt(prompt_token_ids=job.ids) for job in jobs], [engine.params(job) for job in jobs]
    start, cpu = time.perf_counter(), time.process_time()
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return [sum(len(output.outputs[0].token_ids) for output in outputs), seconds, cpu]


if __name__ == "__main__":
    main()
