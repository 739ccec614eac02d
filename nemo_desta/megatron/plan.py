"""Which layouts of the frozen LLM fit these GPUs? ``python -m nemo_desta.megatron.plan --llm llama-3.1-70b --gpus 8``

Arithmetic only: no weights, no GPU, no megatron-core. The formulas and their sources are in docs/megatron.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.megatron import plan_ears
from nemo_desta.megatron.plan_known import KNOWN, find_llm
from nemo_desta.megatron.plan_layouts import GIB, Audio, Machine, Plan, plans, recommend, smallest_that_would
from nemo_desta.megatron.plan_llm import LAYER_KINDS, Load

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
COLUMNS = ("weights", "activations", "logits", "encoders", "projector", "working")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; the exit status: 0, 1 when nothing fits, 2 for a question that cannot be answered."""
    given = _parser().parse_args(arguments)
    try:
        answer = make_plan(given)
    except ConfigError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=1) if given.json else _text(answer))
    return 0 if answer["recommended"] else 1


def make_plan(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as plain types; bytes are per GPU, of the heaviest stage and of each.

    Raises:
        ConfigError: an impossible size, an unknown LLM or encoder.
    """
    _check(given)
    path, config = find_llm(given.llm)
    encoders = plan_ears.find_encoders(given.encoders)
    rows = given.micro_batch
    targets = max(1, round(rows * given.seq_len * given.supervised))
    load = Load(rows, given.seq_len, targets, WIDTHS[given.dtype], given.layers, given.recompute)
    machine = Machine(given.gpus, given.gpus_per_node or min(given.gpus, 8), given.gpu_memory_gb, given.reserve_gb)
    audio = Audio(encoders, given.clips if given.clips is not None else rows, given.audio_secs)
    more = {"num_micro_batches": given.accumulate, "sequence_parallel": given.sequence_parallel}
    found = list(plans(config, machine, load, audio, **more))
    best = recommend(found, machine)
    changes = [] if best else smallest_that_would(config, machine, load, audio, **more)
    return {
        "llm": path,
        "asked": {
            key: value for key, value in vars(given).items() if key not in ("llm", "json", "all", "gpus_per_node")
        }
        | {"gpus_per_node": machine.gpus_per_node, "clips": audio.clips, "targets": targets},
        "usable": machine.usable,
        "layouts": [_plain(plan, machine) for plan in (found if given.all else _worth_showing(found, machine))],
        "recommended": {
            "layout": _plain(best[0], machine),
            "reason": best[1],
            "command": command(path, best[0], given, machine),
        }
        if best
        else None,
        "would_fit": [{"change": change, "layout": _plain(plan, machine)} for change, plan in changes],
    }


def command(path: str, plan: Plan, given: argparse.Namespace, machine: Machine) -> list[str]:
    """The training command's words for a plan, data and weights left to the user."""
    nodes = -(-machine.gpus // machine.gpus_per_node)
    words = ["python", "examples/speechlm_desta.py", "--config-name", "desta25", f"model.llm.path={path}"]
    if given.encoders in plan_ears.CONFIGS:
        words.append(f"encoders={plan_ears.CONFIGS[given.encoders]}")
    words += [
        "strategy=megatron",
        f"strategy.tensor_parallel_size={plan.layout.tensor_parallel_size}",
        f"strategy.pipeline_parallel_size={plan.layout.pipeline_parallel_size}",
        f"strategy.sequence_parallel={str(plan.layout.sequence_parallel).lower()}",
        f"model.activation_checkpointing={str(plan.recompute).lower()}",
        f"trainer.devices={machine.gpus // nodes}",
        f"trainer.num_nodes={nodes}",
        f"trainer.accumulate_grad_batches={given.accumulate}",
        f"data.train_ds.max_batch_size={given.micro_batch}",
        f"data.train_ds.batch_tokens={given.micro_batch * given.seq_len}",
    ]
    return words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nemo_desta.megatron.plan",
        description="Layouts (tensor x pipeline x data parallel) of a frozen LLM that fit, in GiB per GPU. Computed.",
        epilog=f"LLMs known by name: {', '.join(KNOWN)}. Encoders: none, {', '.join(plan_ears.ENCODERS)}, joined by +",
    )
    add = parser.add_argument
    add("--llm", required=True, help="a name below, a folder, a config.json, or a hub id (its config is fetched)")
    add("--gpus", type=int, default=8, help="all of them, over all nodes (default: 8)")
    add("--gpus-per-node", type=int, help="tensor parallelism stays inside a node (default: 8, or --gpus if fewer)")
    add("--gpu-memory-gb", type=float, default=80, help="memory of one GPU in GiB (default: 80)")
    add("--reserve-gb", type=float, default=6, help="left to CUDA, NCCL and the allocator's gaps (default: 6)")
    add("--seq-len", type=int, default=2048, help="LLM positions of the longest row, audio and text (default: 2048)")
    add("--micro-batch", type=int, default=4, help="rows per micro-batch (default: 4)")
    add("--accumulate", type=int, default=8, help="micro-batches per step and copy; they fill a pipeline (default: 8)")
    add("--supervised", type=float, default=0.5, help="share of positions that are targets (default: 0.5)")
    add("--encoders", default="whisper-large-v3+beats", help="default: whisper-large-v3+beats")
    add("--clips", type=int, help="audio clips per micro-batch (default: one per row)")
    add("--audio-secs", type=float, default=30, help="length of the longest clip (default: 30)")
    add("--recompute", action="store_true", help="only layouts with activation recomputation")
    add("--sequence-parallel", choices=("auto", "on", "off"), default="auto", help="auto: wherever TP > 1")
    add("--layers", choices=LAYER_KINDS, default="te", help="TransformerEngine's layers, or the local ones without it")
    add("--dtype", choices=WIDTHS, default="bfloat16", help="of LLM and encoders (default: bfloat16)")
    add("--all", action="store_true", help="show layouts that do not fit, too")
    add("--json", action="store_true", help="print everything as JSON, in bytes")
    return parser


def _check(given: argparse.Namespace) -> None:
    for name in ("gpus", "seq_len", "micro_batch", "accumulate"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(given, name)}")
    if given.gpus_per_node is not None and (given.gpus_per_node < 1 or given.gpus % given.gpus_per_node):
        raise ConfigError(f"--gpus={given.gpus} is not a multiple of --gpus-per-node={given.gpus_per_node}")
    if given.gpus > 8 and given.gpus_per_node is None and given.gpus % 8:
        raise ConfigError(f"--gpus={given.gpus} is more than a node of 8 and no multiple of it: give --gpus-per-node")
    if not 0 <= given.reserve_gb < given.gpu_memory_gb:
        raise ConfigError(
            f"--gpu-memory-gb={given.gpu_memory_gb:g} with --reserve-gb={given.reserve_gb:g} leaves nothing: the "
            "reserve must be at least 0 and less than the memory"
        )
    if not 0 < given.supervised <= 1:
        raise ConfigError(
            f"--supervised is a share of the positions, above 0 and at most 1, found {given.supervised:g}"
        )
    if given.audio_secs <= 0 or (given.clips is not None and given.clips < 0):
        raise ConfigError(
            f"--audio-secs must be positive and --clips not negative, found {given.audio_secs:g} and {given.clips}"
        )


def _worth_showing(found: list[Plan], machine: Machine) -> list[Plan]:
    """Layouts that fit: without recomputation where that fits, with it otherwise."""
    shown: dict[Any, Plan] = {}
    for plan in found:
        if plan.heaviest.total <= machine.usable:
            shown.setdefault(plan.layout, plan)
    return list(shown.values())


def _plain(plan: Plan, machine: Machine) -> dict[str, Any]:
    layout = asdict(plan.layout)
    return {
        **{key: layout[key] for key in ("tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel")},
        "data_parallel_size": plan.copies,
        "recompute": plan.recompute,
        "bubble": plan.bubble,
        "total": plan.heaviest.total,
        "fits": plan.heaviest.total <= machine.usable,
        "heaviest": plan.heaviest.stage,
        "stages": [{**asdict(stage), "total": stage.total} for stage in plan.stages],
    }


def _text(answer: dict[str, Any]) -> str:
    asked = answer["asked"]
    lines = [
        f"{answer['llm']}: GPUs {asked['gpus']} x {asked['gpu_memory_gb']:g} GiB, {answer['usable'] / GIB:g} usable",
        f"a micro-batch: {asked['micro_batch']} rows x {asked['seq_len']} positions, {asked['targets']} targets, "
        f"{asked['clips']} clips of {asked['audio_secs']:g} s; {asked['accumulate']} of them per step",
        f"{asked['dtype']}, {asked['layers']} layers, fused attention, encoders {asked['encoders']}; "
        "GiB per GPU of the heaviest stage, computed, not measured",
        "",
    ]
    if answer["layouts"]:
        heads = ("TP", "PP", "DP", "SP", "recompute", "stage", *COLUMNS, "total", "bubble")
        rows = [heads, *(_row(layout) for layout in answer["layouts"])]
        widths = [max(len(row[index]) for row in rows) for index in range(len(heads))]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    if best := answer["recommended"]:
        layout = best["layout"]
        lines.append(
            f"take {_name(layout)}: {best['reason']}; {(answer['usable'] - layout['total']) / GIB:.1f} GiB are left"
        )
        lines += ["", " \\\n  ".join([" ".join(best["command"][:4]), *best["command"][4:]])]
        return "\n".join(lines)
    lines.append("nothing fits")
    for way in answer["would_fit"]:
        lines.append(f"  {way['change']}: {_name(way['layout'])} takes {way['layout']['total'] / GIB:.1f} GiB")
    if not answer["would_fit"]:
        lines.append(
            "  and neither smaller micro-batches nor more GPUs of this size would do: --all shows what is missing"
        )
    return "\n".join(lines)


def _row(layout: dict[str, Any]) -> tuple[str, ...]:
    stage = layout["stages"][layout["heaviest"]]
    sizes = [f"{stage[name] / GIB:.1f}" for name in (*COLUMNS, "total")]
    return (
        str(layout["tensor_parallel_size"]),
        str(layout["pipeline_parallel_size"]),
        str(layout["data_parallel_size"]),
        "yes" if layout["sequence_parallel"] else "no",
        "yes" if layout["recompute"] else "no",
        str(layout["heaviest"]),
        *sizes[:-1],
        sizes[-1] + ("" if layout["fits"] else " too much"),
        f"{layout['bubble']:.0%}",
    )


def _name(layout: dict[str, Any]) -> str:
    name = (
        f"TP{layout['tensor_parallel_size']} x PP{layout['pipeline_parallel_size']} x DP{layout['data_parallel_size']}"
    )
    name += " with sequence parallelism" if layout["sequence_parallel"] else ""
    return name + (" and recomputation" if layout["recompute"] else "")


if __name__ == "__main__":
    sys.exit(main())
