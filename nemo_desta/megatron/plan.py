"""Which layouts of the frozen LLM fit these GPUs? ``python -m nemo_desta.megatron.plan --llm llama-3.1-70b --gpus 8``

It computes: no weights, no GPU, no megatron-core. docs/explain/memory_planner.md has the formulas and their sources.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PretrainedConfig

from nemo_desta.config import LoraConfig, nearest
from nemo_desta.core.cost import DENSE_MFU, EXPERTS_MFU, GPUS, Speed, default_mfu, rate_text
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.audio_memory import CONFIGS, ENCODERS, VARIANTS, perceive
from nemo_desta.megatron.layout_search import GIB, Job, Plan, plans, recommend, smallest_changes
from nemo_desta.megatron.llm_configs import KNOWN, find_llm
from nemo_desta.megatron.llm_memory import LAYER_KINDS, Load
from nemo_desta.megatron.param_mapping import part_names
from nemo_desta.perception.registry import PROJECTORS

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
SIZES = {"TP": "tensor_parallel_size", "PP": "pipeline_parallel_size", "DP": "data_parallel_size"}
#: Shown only where a layout has more than one.
SELDOM = {"CP": "context_parallel_size", "EP": "expert_parallel_size"}
SWITCHES = {"SP": "sequence_parallel", "recompute": "recompute"}
COLUMNS = ("weights", "lora", "activations", "logits", "encoders", "projector", "working")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan. Exit status: 0; 1 when nothing fits; 2 for wrong arguments."""
    given = _parser().parse_args(arguments)
    try:
        answer = make_plan(given)
    except ConfigError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=1) if given.json else _text(answer))
    return 0 if answer["recommended"] else 1


def make_plan(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as plain types; bytes are per GPU, of the heaviest stage and of each stage.

    Raises:
        ConfigError: an impossible size, an unknown LLM or encoder.
    """
    _check(given)
    path, config = find_llm(given.llm)
    rows = given.micro_batch
    targets = max(1, round(rows * given.seq_len * given.supervised))
    lora = _lora(given, config)
    load = Load(rows, given.seq_len, targets, WIDTHS[given.dtype], given.layers, given.recompute, lora)
    job = Job(
        llm=config,
        load=load,
        perception=perceive(given.encoders, given.projector, config.hidden_size, given.audio_secs, given.dtype),
        speed=Speed(given.gpu, default_mfu(config) if given.mfu is None else given.mfu),
        clips=given.clips if given.clips is not None else rows,
        secs=given.audio_secs,
        num_micro_batches=given.accumulate,
        gpus=given.gpus,
        gpus_per_node=given.gpus_per_node or min(given.gpus, 8),
        usable=int((_memory_gb(given) - given.reserve_gb) * GIB),
        sequence_parallel=given.sequence_parallel,
        encoded=1 / given.epochs if given.feature_cache else 1,
    )
    found = list(plans(job))
    shown: dict[tuple[int, ...], Plan] = {}  # layouts that fit, without recomputation and with few ranks per expert
    for plan in sorted(found, key=lambda plan: (plan.recompute, plan.expert_parallel_size)):
        if plan.fits:
            shown.setdefault(plan.sizes, plan)
    best = recommend(found)
    asked = {key: value for key, value in vars(given).items() if key not in ("llm", "json", "all")}
    known = {"gpu_memory_gb": _memory_gb(given), "gpus_per_node": job.gpus_per_node, "clips": job.clips}
    return {
        "llm": path,
        "asked": asked | known | {"targets": targets},
        "usable": job.usable,
        "layouts": [asdict(plan) for plan in (found if given.all else [shown[key] for key in sorted(shown)])],
        "recommended": best
        and {
            "layout": asdict(best[0]),
            "reason": best[1],
            "time": _time(best[0], given, job),
            "command": command(path, best[0], given, job),
        },
        "would_fit": [
            {"change": change, "layout": asdict(plan)} for change, plan in (() if best else smallest_changes(job))
        ],
    }


def command(path: str, plan: Plan, given: argparse.Namespace, job: Job) -> list[str]:
    """The words of the training command for a plan; the user adds data and weights."""
    nodes, lora = -(-job.gpus // job.gpus_per_node), job.load.lora
    return [
        *("desta", "train", "--config-name", "desta25", f"model.llm.path={path}"),
        *([f"encoders={CONFIGS[given.encoders]}"] if given.encoders in CONFIGS else []),
        *([] if given.projector == "window" else [f"projector={given.projector}"]),
        "strategy=megatron",
        f"strategy.tensor_parallel_size={plan.tensor_parallel_size}",
        f"strategy.pipeline_parallel_size={plan.pipeline_parallel_size}",
        *(f"strategy.{key}={size}" for key in SELDOM.values() if (size := getattr(plan, key)) > 1),
        f"strategy.sequence_parallel={str(plan.sequence_parallel).lower()}",
        f"model.activation_checkpointing={str(plan.recompute).lower()}",
        f"trainer.devices={job.gpus // nodes}",
        f"trainer.num_nodes={nodes}",
        f"trainer.accumulate_grad_batches={given.accumulate}",
        f"data.train_ds.max_batch_size={given.micro_batch}",
        f"data.train_ds.batch_tokens={given.micro_batch * given.seq_len}",
        *(["data.feature_cache={folder: null}"] if given.feature_cache else []),
        *([f"model.llm.lora={{r: {lora.r}, target_modules: [{', '.join(lora.target_modules)}]}}"] if lora else []),
    ]


def _time(plan: Plan, given: argparse.Namespace, job: Job) -> dict[str, Any] | None:
    """FLOPs of a micro-batch, hours and cost of the corpus; None where the GPU's bfloat16 peak does not apply."""
    if given.dtype == "float32" or not job.clips:
        return None
    flops = job.flops(recompute=plan.recompute)
    gpu_hours = given.corpus_hours * given.epochs / plan.rate
    return {
        "flops": asdict(flops),
        "summary": f"{flops} per micro-batch; at {job.speed}, assumed: {rate_text(plan.rate)} hours of audio per "
        "GPU-hour",
        "gpu_hours": gpu_hours,
        "hours": gpu_hours / job.gpus,
        "cost": given.price and gpu_hours * given.price,
        "feature_cache": job.perception.feature_bytes * given.corpus_hours if given.feature_cache else None,
    }


def _lora(given: argparse.Namespace, config: PretrainedConfig) -> LoraConfig | None:
    """The adapters that are asked for, with the dropout that training has by default."""
    if given.lora_rank is None:
        return None
    targets = given.lora_targets.split(",")
    linear = (name for name in part_names(config) if name.endswith("_proj.weight") and ".experts." not in name)
    known = {name.split(".")[-2] for name in linear}  # experts stay frozen
    for target in targets:
        if target not in known:
            raise ConfigError(f"--lora-targets: this LLM has no '{target}'.{nearest(target, known)}")
    return LoraConfig(r=given.lora_rank, target_modules=targets)


def _memory_gb(given: argparse.Namespace) -> float:
    return GPUS[given.gpu].memory if given.gpu_memory_gb is None else given.gpu_memory_gb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="desta plan",
        description="Layouts (tensor x pipeline x data parallel) of a frozen LLM that fit, in GiB per GPU; time and "
        "cost of training. Computed.",
        epilog=f"LLMs known by name: {', '.join(KNOWN)}. Encoders: none, {', '.join(ENCODERS)}, joined by +",
    )
    add = parser.add_argument
    add("--llm", required=True, help="a name below, a folder, a config.json, or a hub id (its config is fetched)")
    add("--gpus", type=int, default=8, help="all GPUs, over all nodes (default: 8)")
    add("--gpus-per-node", type=int, help="tensor parallelism stays inside a node (default: 8, or --gpus if fewer)")
    add("--gpu", choices=GPUS, default="h100", help="its memory and bfloat16 peak (default: h100)")
    add("--gpu-memory-gb", type=float, help="memory of one GPU in GiB (default: that of --gpu, 80 for h100)")
    add("--reserve-gb", type=float, default=6, help="left to CUDA, NCCL and the allocator's gaps (default: 6)")
    add("--seq-len", type=int, default=2048, help="LLM positions of the longest row, audio and text (default: 2048)")
    add("--micro-batch", type=int, default=4, help="rows per micro-batch (default: 4)")
    add("--accumulate", type=int, default=8, help="micro-batches per step and copy; they fill a pipeline (default: 8)")
    add("--supervised", type=float, default=0.5, help="share of positions that are targets (default: 0.5)")
    add("--encoders", default="whisper-large-v3+beats", help="default: whisper-large-v3+beats")
    add("--projector", default="window", help=f"{', '.join([*PROJECTORS, *VARIANTS])} (default: window)")
    add("--lora-rank", type=int, help="train LoRA of this rank as well")
    add("--lora-targets", default=",".join(LoraConfig().target_modules), help="default: q_proj,k_proj,v_proj")
    add("--clips", type=int, help="audio clips per micro-batch (default: one per row)")
    add("--audio-secs", type=float, default=30, help="length of the longest clip (default: 30)")
    add("--recompute", action="store_true", help="only layouts with activation recomputation")
    add("--sequence-parallel", choices=("auto", "on", "off"), default="auto", help="auto: wherever TP > 1")
    add("--layers", choices=LAYER_KINDS, default="te", help="TransformerEngine's layers, or the local ones without it")
    add("--dtype", choices=WIDTHS, default="bfloat16", help="of LLM and encoders (default: bfloat16)")
    assumed = f"share of the peak, an assumption (default: {DENSE_MFU}, of a mixture of experts {EXPERTS_MFU})"
    add("--mfu", type=float, help=assumed)
    add("--corpus-hours", type=float, default=1000, help="audio of an epoch, for time and cost (default: 1000)")
    add("--epochs", type=float, default=1, help="default: 1")
    add("--feature-cache", action="store_true", help="encode every clip in the first epoch only (docs/storage.md)")
    add("--price", type=float, help="of a GPU-hour, for the cost in the same currency")
    add("--all", action="store_true", help="also show layouts that do not fit")
    add("--json", action="store_true", help="print everything as JSON, in bytes")
    return parser


def _check(given: argparse.Namespace) -> None:
    gpus, per_node, memory, reserve = given.gpus, given.gpus_per_node, _memory_gb(given), given.reserve_gb
    for name in ("gpus", "seq_len", "micro_batch", "accumulate", "lora_rank"):
        if (count := getattr(given, name)) is not None and count < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {count}")
    wrong = None
    if per_node is not None and (per_node < 1 or gpus % per_node):
        wrong = f"--gpus={gpus} is not a multiple of --gpus-per-node={per_node}"
    elif per_node is None and gpus > 8 and gpus % 8:
        wrong = f"--gpus={gpus} is more than a node of 8 and no multiple of it: give --gpus-per-node"
    elif not 0 <= reserve < memory:
        wrong = f"--gpu-memory-gb={memory:g} with --reserve-gb={reserve:g} leaves nothing: 0 <= reserve < memory"
    elif not 0 < given.supervised <= 1:
        wrong = f"--supervised is a share of the positions, above 0 and at most 1, found {given.supervised:g}"
    elif given.audio_secs <= 0 or (given.clips or 0) < 0:
        wrong = f"--audio-secs must be positive and --clips not negative, found {given.audio_secs:g} and {given.clips}"
    elif given.feature_cache and given.epochs < 1:
        wrong = f"--feature-cache saves nothing in less than an epoch, found --epochs={given.epochs:g}"
    elif min(given.corpus_hours, given.epochs) <= 0 or (given.price or 0) < 0:
        wrong = "--corpus-hours and --epochs must be positive and --price not negative"
    if wrong:
        raise ConfigError(wrong)


def _text(answer: dict[str, Any]) -> str:
    asked, usable = answer["asked"], answer["usable"]
    lines = [
        f"{answer['llm']}: GPUs {asked['gpus']} x {asked['gpu']}, {asked['gpu_memory_gb']:g} GiB, {usable / GIB:g} "
        "usable",
        f"a micro-batch: {asked['micro_batch']} rows x {asked['seq_len']} positions, {asked['targets']} targets, "
        f"{asked['clips']} clips of {asked['audio_secs']:g} s; {asked['accumulate']} of them per step",
        f"{asked['dtype']}, {asked['layers']} layers, fused attention, encoders {asked['encoders']}, projector "
        f"{asked['projector']}; GiB per GPU of the heaviest stage, computed, not measured",
        "",
    ]
    if answer["layouts"]:
        rows = _rows(answer["layouts"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    if best := answer["recommended"]:
        layout, words = best["layout"], best["command"]
        lines.append(f"take {_name(layout)}: {best['reason']}; {(usable - layout['total']) / GIB:.1f} GiB are left")
        lines += _time_lines(best["time"], asked)
        return "\n".join([*lines, "", " \\\n  ".join([" ".join(words[:4]), *map(shlex.quote, words[4:])])])
    lines.append("nothing fits")
    for way in answer["would_fit"]:
        lines.append(f"  {way['change']}: {_name(way['layout'])} takes {way['layout']['total'] / GIB:.1f} GiB")
    if not answer["would_fit"]:
        lines.append("  smaller micro-batches or more GPUs of this size do not help: --all shows what is missing")
    return "\n".join(lines)


def _time_lines(time: dict[str, Any] | None, asked: dict[str, Any]) -> list[str]:
    if time is None:
        return []
    cost = "" if time["cost"] is None else f", {time['cost']:,.0f} at {asked['price']:g} per GPU-hour"
    epochs = "1 epoch" if asked["epochs"] == 1 else f"{asked['epochs']:g} epochs"
    cached = time["feature_cache"]
    return [
        time["summary"],
        *([] if cached is None else [f"feature cache: {cached / 1e9:,.0f} GB; each clip is encoded once"]),
        f"{asked['corpus_hours']:,g} h of audio x {epochs}: {time['hours']:,.1f} h on {asked['gpus']} GPUs, "
        f"{time['gpu_hours']:,.1f} GPU-hours{cost}",
    ]


def _rows(layouts: list[dict[str, Any]]) -> list[list[str]]:
    """The table's cells, its head first; columns of what no layout has are left out."""
    heaviest = [layout["stages"][layout["heaviest"]] for layout in layouts]
    seldom = {letters: key for letters, key in SELDOM.items() if any(layout[key] > 1 for layout in layouts)}
    sizes, columns = SIZES | seldom, [name for name in COLUMNS if name != "lora" or any(s[name] for s in heaviest)]
    rows = [[*sizes, *SWITCHES, "stage", *columns, "total", "bubble", "rate"]]
    for layout, stage in zip(layouts, heaviest, strict=True):
        rows.append(
            [
                *(str(layout[key]) for key in sizes.values()),
                *("yes" if layout[key] else "no" for key in SWITCHES.values()),
                str(stage["stage"]),
                *(f"{stage[name] / GIB:.1f}" for name in columns),
                f"{stage['total'] / GIB:.1f}{'' if layout['fits'] else ' too much'}",
                f"{layout['bubble']:.0%}",
                rate_text(layout["rate"]),
            ]
        )
    return rows


def _name(layout: dict[str, Any]) -> str:
    seldom = {letters: key for letters, key in SELDOM.items() if layout[key] > 1}
    name = " x ".join(f"{letters}{layout[key]}" for letters, key in (SIZES | seldom).items())
    name += " with sequence parallelism" if layout["sequence_parallel"] else ""
    return name + (" and recomputation" if layout["recompute"] else "")


if __name__ == "__main__":
    sys.exit(main())
