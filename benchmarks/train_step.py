"""Throughput of one training step (forward, backward, optimiser) at real shapes with random weights.

    python -m benchmarks.train_step --shape qwen3-4b --json benchmarks/results/<gpu>_qwen3-4b.json

Measures our step, a plain implementation of DeSTA2.5's recipe, and our step with each optimisation switched off, on
the same rows in one run; the ratio is the result. Needs torch and transformers, neither NeMo nor any download.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import train_step_rows as rows_of
from benchmarks.train_step_flops import peak_flops, step_flops
from benchmarks.train_step_profile import PARTS, Timeline, counted_waits, watched
from benchmarks.train_step_rows import SAMPLING_RATE, BenchRow
from benchmarks.train_step_shapes import SHAPES, Shape, shape
from benchmarks.train_step_variants import PLAIN_ROWS, Parts, Variant, make_loss, variants, why_not
from nemo_desta.package_info import __version__

ON_DEMAND = ("compiled",)  # compiling takes minutes
OUR_RATE = 6.25  # vectors per second of audio of the window projector


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line; returns what ``--json`` writes."""
    args = _parse(argv)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    chosen = shape(args.shape)
    batch_tokens = args.batch_tokens or chosen.batch_tokens
    known = variants(_dtype(args.dtype, device))
    names = args.variants or [name for name in known if name not in ON_DEMAND]
    noise = 0.1 * torch.randn(
        int(rows_of.MAX_SECS * SAMPLING_RATE), generator=torch.Generator().manual_seed(args.seed)
    )
    pool = rows_of.make_rows(rows_of.POOL, args.seed)
    ours = rows_of.spread(rows_of.bucketed(pool, batch_tokens, OUR_RATE), args.steps)
    report = {"about": _about(args, device, chosen, batch_tokens, ours), "variants": {}, "skipped": {}}
    print(json.dumps(report["about"], indent=1))
    for name in names:
        variant = known[name]
        if (reason := why_not(variant, known["ours"])) is not None:
            report["skipped"][name] = reason
            continue
        batches = _batches(variant, ours, batch_tokens, args.seed)
        try:
            result = measure(chosen, variant, batches, noise, device, warmup=args.warmup, profiled=args.profiled)
        except torch.OutOfMemoryError:
            report["skipped"][name] = f"out of memory with batches of {batch_tokens} positions"
            continue
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        report["variants"][name] = result
        print(f"{variant.name}: {result['step_secs_median']:.3f} s per step", flush=True)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return report


def measure(
    shape: Shape,
    variant: Variant,
    batches: list[list[BenchRow]],
    noise: torch.Tensor,
    device: torch.device,
    *,
    warmup: int,
    profiled: int,
) -> dict[str, Any]:
    """One variant over all batches, then a second, marked pass over ``profiled`` of them for the shares."""
    parts = Parts(shape, variant, device)
    trained = [p for p in parts.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)
    step = _make_step(make_loss(parts, variant), trained, optimizer)
    pin = device.type == "cuda"
    started = time.perf_counter()
    host = [rows_of.collate(rows, noise, shape.llm.vocab_size) for rows in batches]
    collate_secs = (time.perf_counter() - started) / len(host)
    host = [{key: tensor.pin_memory() for key, tensor in batch.items()} for batch in host] if pin else host

    largest = sorted(host, key=lambda batch: batch["input_ids"].numel() + batch["audio"].numel(), reverse=True)
    for i in range(warmup):
        step(largest[i % len(largest)], device)
    if pin:
        torch.cuda.reset_peak_memory_stats(device)
    times, losses = [], []
    for batch in host:
        _wait(device)
        started = time.perf_counter()
        losses.append(step(batch, device))
        _wait(device)
        times.append(time.perf_counter() - started)
    peak_memory = torch.cuda.max_memory_allocated(device) if pin else None

    waits: Counter[str] = Counter()
    timeline = Timeline(device)
    with watched(timeline, parts.perception, parts.llm):
        for batch in host[:profiled]:
            timeline.start()
            step(batch, device, timeline.mark)
    with counted_waits(device, waits):
        step(host[0], device)
    return _summary(variant, parts, batches, times, losses) | {
        "peak_memory_bytes": peak_memory,
        "collate_secs": collate_secs,
        "shares": timeline.shares(),
        "host_waits_per_step": dict(waits),
        "trained_parameters": sum(p.numel() for p in trained),
        "frozen_parameters": sum(p.numel() for p in parts.parameters()) - sum(p.numel() for p in trained),
    }


def _make_step(
    loss_of: Callable[..., Any], trained: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> Callable[..., float]:
    def step(batch: dict[str, torch.Tensor], device: torch.device, mark: Callable[[str], None] | None = None) -> float:
        mark = mark or (lambda part: None)
        on_device = {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}
        mark("data")
        loss, num_targets = loss_of(on_device)
        mark("loss")
        loss.backward()
        mark("projector")
        torch._foreach_mul_([p.grad for p in trained if p.grad is not None], 1 / num_targets)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item() / num_targets
        mark("optimizer")
        return value

    return step


def _summary(
    variant: Variant, parts: Parts, batches: list[list[BenchRow]], times: list[float], losses: list[float]
) -> dict[str, Any]:
    rows = [row for batch in batches for row in batch]
    audio_secs = sum(row.num_samples for row in rows) / SAMPLING_RATE
    positions = [[_positions(parts, variant, row) for row in batch] for batch in batches]
    read = sum(map(sum, positions))
    total = sum(times)
    device = next(parts.parameters()).device
    fitted = _as_read(variant, rows)
    peak, flops = peak_flops(device), step_flops(fitted, parts.llm, parts.perception)
    return {
        "variant": {key: str(value) for key, value in dataclasses.asdict(variant).items()},
        "steps": len(times),
        "rows": len(rows),
        "step_secs_median": statistics.median(times),
        "step_secs": times,
        "audio_hours_per_device_hour": audio_secs / total,
        "tokens_per_sec": read / total,
        "padding_share": 1 - read / sum(len(batch) * max(batch) for batch in positions),
        "model_flops": flops,
        "mfu": None if peak is None else flops / (total * peak),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: one line per variant, then the shares."""
    results = report["variants"]
    base = results.get("ours", next(iter(results.values()), None))
    lines = [
        "| variant | step (median s) | audio-h per device-h | of ours | tokens/s | MFU | peak GiB | padding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results.values():
        speed = result["audio_hours_per_device_hour"]
        lines.append(
            f"| {result['variant']['name']} | {result['step_secs_median']:.3f} | {speed:.1f} | "
            f"{speed / base['audio_hours_per_device_hour']:.2f} | {result['tokens_per_sec']:.0f} | "
            f"{_number(result['mfu'], 100, '.1f')} | {_number(result['peak_memory_bytes'], 2**-30, '.1f')} | "
            f"{100 * result['padding_share']:.1f} % |"
        )
    lines += ["", "| share of a step, % | " + " | ".join(PARTS) + " |", "|---|" + "---|" * len(PARTS)]
    for result in results.values():
        cells = " | ".join(f"{100 * result['shares'][part]:.1f}" for part in PARTS)
        lines.append(f"| {result['variant']['name']} | {cells} |")
    lines += ["", *(f"not measured: {name}: {reason}" for name, reason in report["skipped"].items())]
    return "\n".join(lines).strip()


def _batches(variant: Variant, ours: list[list[BenchRow]], batch_tokens: int, seed: int) -> list[list[BenchRow]]:
    """The same rows for every variant, in its own batches."""
    if variant.bucketing:
        return ours
    rows = rows_of.shuffled([row for batch in ours for row in batch], seed)
    if variant.recipe == "plain":
        return [rows[i : i + PLAIN_ROWS] for i in range(0, len(rows), PLAIN_ROWS)]
    return rows_of.cut(rows, batch_tokens, OUR_RATE)


def _as_read(variant: Variant, rows: list[BenchRow]) -> list[BenchRow]:
    """Rows as the recipe hears them: the plain one hears 30 s of each."""
    if variant.recipe == "ours":
        return rows
    return [row._replace(num_samples=int(rows_of.MAX_SECS * SAMPLING_RATE)) for row in rows]


def _positions(parts: Parts, variant: Variant, row: BenchRow) -> int:
    (heard,) = _as_read(variant, [row])
    return parts.perception.num_tokens(heard.num_samples) + row.prompt_tokens + row.target_tokens


def _about(
    args: argparse.Namespace, device: torch.device, shape: Shape, batch_tokens: int, batches: list[list[BenchRow]]
) -> dict[str, Any]:
    rows = [row for batch in batches for row in batch]
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU {platform.machine()}, no speed is claimed",
        "peak_bf16_flops": peak_flops(device),
        "versions": {
            "nemo_desta": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if on_gpu else None,
            "transformers": transformers.__version__,
        },
        "shape": shape.name,
        "llm": {key: shape.llm.to_dict()[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")},
        "batch_tokens": batch_tokens,
        "seed": args.seed,
        "rows": {
            "count": len(rows),
            "audio_secs_mean": round(statistics.mean(row.num_samples for row in rows) / SAMPLING_RATE, 2),
            "target_tokens_mean": round(statistics.mean(row.target_tokens for row in rows), 1),
        },
    }


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """As `DestaModel`: bfloat16 on a GPU, float32 on a CPU, unless asked otherwise."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    known = list(variants(torch.float32))
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-4b", help="tiny only checks the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="of the frozen parts")
    parser.add_argument("--steps", type=int, default=20, help="batches of ours; other variants read the same rows")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock runs, largest batches first")
    parser.add_argument("--profiled", type=int, default=5, help="steps of the pass that gives the shares")
    parser.add_argument("--batch-tokens", type=int, help="rows times longest row of a batch; by default the shape's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=known,
        metavar="NAME",
        help=f"some of: {', '.join(known)}; all but {ON_DEMAND[0]} by default",
    )
    parser.add_argument("--json", type=Path, help="where to write the report, after every variant")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
