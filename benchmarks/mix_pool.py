"""Layer mix, LayerNorm and window pooling: ours against what people write and what torch.compile makes of it.

    python -m benchmarks.mix_pool --out benchmarks/results/<gpu>_mix_pool [--quick] [--tune]

On a GPU: times, share of the copy rate, memory, bytes kept for backward, as CSV, table and plot. On a CPU: the bytes,
the number of operators, and times of the plain PyTorch variants only. Needs torch and triton, neither NeMo nor any
download; matplotlib for the plot.
"""

import argparse
import csv
import datetime
import importlib.util
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import mix_pool_cpu as on_cpu
from benchmarks.mix_pool_cases import Case, all_cases, default_cases
from benchmarks.mix_pool_variants import COMPILED, REFERENCES, VARIANTS
from nemo_desta.package_info import __version__

GPU_COLUMNS = ("forward_ms", "backward_ms", "both_ms", "forward_kernels_ms", "both_kernels_ms",
               "forward_of_copy", "backward_of_copy",
               "peak_memory_of_states", "saved_of_states", "same_bits_twice")  # fmt: skip
KEPT_CASES = (Case(), Case(N=8, K=8), Case(mode="stack"))
TIMED_CASES = tuple(Case(B=2, K=K, C=C, dtype=dtype) for dtype in ("fp32", "bf16") for K, C in ((4, 1280), (8, 768)))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line; returns what ``--out`` gets as report.json."""
    args = _parse(argv)
    report = {"about": about(args.device)}
    print(json.dumps(report["about"], indent=1), flush=True)
    report |= _on_gpu(args) if args.device.type == "cuda" else _on_cpu(args)
    text = table(report)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "table.md").write_text(_caption(report["about"]) + "\n\n" + text + "\n")
        write_csv(args.out / "mix_pool.csv", report["rows"])
        if args.device.type == "cuda":
            plot(args.out / "mix_pool.png", report)
    return report


def _on_gpu(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.mix_pool_gpu import copy_rate, measure, tune

    rate = copy_rate(args.device)
    print(f"copy: {rate / 1e9:.0f} GB/s", flush=True)
    rows, tuning, skipped = [], [], []
    cases = all_cases() if args.all else default_cases(args.quick)
    started = time.perf_counter()
    for case in cases:
        for name in args.variants:
            if time.perf_counter() - started > args.seconds:
                skipped.append(f"{case} {name}: {args.seconds} s were over")
                continue
            try:
                rows.append(measure(case, name, args.device, rate))
            except Exception as error:  # one variant's failure must not cost the rest of a lent GPU's time
                skipped.append(f"{case} {name}: {type(error).__name__}: {error}")
                continue
            finally:
                torch.cuda.empty_cache()
            print(f"{case} {name}: forward {rows[-1]['forward_ms']:.3f} ms, both {rows[-1]['both_ms']:.3f} ms",
                  flush=True)  # fmt: skip
        if args.tune:
            tuning += tune(case, args.device)
    return {"copy_bytes_per_sec": rate, "rows": rows, "tuning": tuning, "skipped": skipped}


def _on_cpu(args: argparse.Namespace) -> dict[str, Any]:
    names = tuple(name for name in args.variants if name != "compile-max-autotune")
    references = tuple(name for name in names if name in REFERENCES)
    kept_cases = KEPT_CASES[:1] if args.quick else KEPT_CASES
    timed_cases = (Case(B=1, T=64, C=96, dtype="fp32"),) if args.quick else TIMED_CASES
    rows = []
    for case in kept_cases:
        kept = on_cpu.kept_multiples(case, names)
        for name in names:
            ops = on_cpu.op_count(name, case) if name.startswith("eager") else None
            rows.append({"case": str(case), "variant": name, "saved_of_states": kept[name], "operators": ops})
    for case in timed_cases:
        found = on_cpu.times(case, references)
        base = found[references[0]]["both_secs"] if references else None
        rows += [
            {"case": str(case), "variant": name, **value, "speed_both": base / value["both_secs"]}
            for name, value in found.items()
        ]
    return {"rows": rows, "skipped": ["everything that needs a GPU: times of ours, bandwidth, peak memory"]}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines: list[str] = []
    if "copy_bytes_per_sec" in report:
        lines += [f"Copy rate {report['copy_bytes_per_sec'] / 1e9:.0f} GB/s", ""]
        lines += _rows(report["rows"], GPU_COLUMNS)
        if report["tuning"]:
            lines += ["", *_rows(report["tuning"], ("warps", "ms", "rule"), second="kernel")]
    else:
        kept = [row for row in report["rows"] if "saved_of_states" in row]
        timed = [row for row in report["rows"] if "both_secs" in row]
        lines += ["Kept for backward, in multiples of the states; operators in forward plus backward", ""]
        lines += _rows(kept, ("saved_of_states", "operators"))
        lines += [
            "",
            "Seconds of one core; speed: forward plus backward, against the first variant",
            "",
        ]
        lines += _rows(timed, ("forward_secs", "both_secs", "speed_both"))
    return "\n".join([*lines, "", *(f"not measured: {reason}" for reason in report["skipped"])]).strip()


def _rows(rows: list[dict[str, Any]], columns: tuple[str, ...], second: str = "variant") -> list[str]:
    lines = [f"| case | {second} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v := row[c], float) else "-" if v is None else str(v) for c in columns]
        lines.append(f"| {row['case']} | {row[second]} | " + " | ".join(cells) + " |")
    return lines


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per case and variant."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, report: dict[str, Any]) -> None:
    """Forward plus backward as a share of the copy rate; skipped with a word where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: pip install matplotlib")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["rows"]
    cases, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "variant"))
    height = 0.8 / max(1, len(names))
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.6 * len(cases)), layout="constrained")
    for i, name in enumerate(names):
        mine = [row for row in rows if row["variant"] == name]
        places = [cases.index(row["case"]) + i * height for row in mine]
        axes.barh(places, [row["both_of_copy"] for row in mine], height, label=name)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(cases))], cases, fontsize=7)
    axes.set_xlabel("least bytes / time of the kernels, as a share of the copy rate; forward plus backward")
    axes.set_title(_caption(report["about"]), fontsize=8)
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def about(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, date."""
    on_gpu = device.type == "cuda"
    has_triton = importlib.util.find_spec("triton") is not None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else f"CPU {platform.machine()}, no GPU speed is claimed",
        "nemo_desta": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__ if has_triton else None,
        "modes": COMPILED,
    }


def _caption(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "triton"))
    return f"{facts['device']}, {versions}, {facts['date']}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mix_pool", description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="all by default")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="GPU: four shapes; CPU: checks that the script works")
    size.add_argument("--all", action="store_true", help="GPU: the whole product of shapes, hours")
    parser.add_argument("--tune", action="store_true", help="also time every launch that may be chosen")
    parser.add_argument("--seconds", type=float, default=480, help="GPU: no new measurement after that")
    parser.add_argument("--out", type=Path, help="folder for report.json, table.md, mix_pool.csv and mix_pool.png")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
