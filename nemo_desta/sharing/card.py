"""The model card of an export: trained parts, training data, frozen parts, and their licences."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nemo_desta.config import ModelConfig
from nemo_desta.core.trust import own_targets
from nemo_desta.package_info import __version__
from nemo_desta.sharing.references import HUB_ID, Reference

#: Beginning of a part's name without its owner, in lower case -> the licence of its authors.
LICENCES = {
    "qwen3-": "Apache-2.0",
    "whisper-": "Apache-2.0 (OpenAI's repository: MIT)",
    "beats": "MIT (microsoft/unilm)",
    "w2v-bert-2.0": "MIT",
    "hubert-": "Apache-2.0",
    "wavlm-": "CC BY-SA 3.0 (microsoft/UniSpeech)",
    "muq-": "CC-BY-NC-4.0: no commercial use",
    "sslam_": "MIT",
    "eat-": "MIT (cwx-worst-one/EAT)",
    "llama-3.1-": "Llama 3.1 Community License: attribution and an acceptable use policy",
    "meta-llama-3-": "Meta Llama 3 Community License: attribution and an acceptable use policy",
    "llama-3.2-": "Llama 3.2 Community License: attribution and an acceptable use policy",
}
UNKNOWN = "see its page"
PACKAGED = "Apache-2.0, part of nemo_desta"


def model_card(
    name: str,
    config: ModelConfig,
    references: Mapping[str, Reference],
    record: Mapping[str, Any],
    *,
    num_projector: int,
    num_lora: int = 0,
) -> str:
    """README.md with the hub's metadata. ``record``: the run's record, the source of every statement."""
    llm = references["llm"].source
    trained = f"projector ({num_projector:,} parameters)"
    if num_lora:
        trained += f" and LoRA on the LLM ({num_lora:,} parameters, in `lora/`)"
    parts = [
        (part, f"`{reference.source}`", (reference.revision or "")[:12], licence_of(reference.source))
        for part, reference in references.items()
    ]
    scores = [(f"`{key}`", f"{value:.4f}") for key, value in sorted((record.get("validation") or {}).items())]
    sections = [
        _metadata(references, record, has_lora=bool(num_lora)),
        f"# {name}\n\n{llm} with ears: a {trained}, trained with "
        f"[NeMo](https://github.com/NVIDIA/NeMo)'s plugin nemo_desta {__version__}, projects the features of frozen "
        "audio encoders into the LLM's embedding space. This folder holds the trained weights and the tokenizer; LLM "
        "and encoders are loaded from their own sources. Loading fails if they differ from those of the training.",
        "## Use\n\n" + _use(name, references, own_targets(config.perception)),
        "## Frozen parts\n\n" + _table(("part", "what", "revision", "licence"), parts),
        "## Training\n\n" + _training(config, record),
        "## Data\n\n" + _data(record),
        "## Validation\n\n" + (_table(("", "at the end of the training"), scores) if scores else "Not recorded."),
        "## Licences\n\nThe frozen parts and the training data keep the licences that their owners give them; they "
        "may limit what this model can be used for. The licence of what was trained here is its owner's to choose: "
        "none is stated until the line `license:` is filled in at the top of this card.",
    ]
    return "\n\n".join(sections) + "\n"


def licence_of(source: str) -> str:
    """The licence of a frozen part, found by its name."""
    if source.startswith("package:"):
        return PACKAGED
    own = source.rpartition("/")[2].lower()
    return next((licence for start, licence in LICENCES.items() if own.startswith(start)), UNKNOWN)


def _metadata(references: Mapping[str, Reference], record: Mapping[str, Any], *, has_lora: bool) -> str:
    bases = [r.source for r in references.values() if r.reachable and HUB_ID.fullmatch(r.source)]
    counted = (record.get("datasets") or {}).values()
    datasets = sorted({name for counts in counted for name in counts if HUB_ID.fullmatch(name)})
    tags = ["nemo", "audio", "speech", "audio-language-model", "desta", *(["lora", "peft"] if has_lora else [])]
    lines = ["---", "library_name: nemo_desta", "pipeline_tag: audio-text-to-text"]
    lines += ["# license:   yours to choose, see 'Licences' below; then remove the #"]
    for key, values in (("base_model", bases), ("datasets", datasets), ("tags", tags)):
        lines += [f"{key}:", *(f"- {json.dumps(value)}" for value in values)] if values else []
    return "\n".join([*lines, "---"])


def _use(name: str, references: Mapping[str, Reference], targets: Sequence[str]) -> str:
    encoders = {part.removeprefix("encoders."): r for part, r in references.items() if part != "llm"}
    arguments = [json.dumps(name)]
    if not references["llm"].reachable:
        arguments.append(f'llm="<folder of {references["llm"].source}>"')
    if absent := [f'"{key}": "<path of {r.source}>"' for key, r in encoders.items() if not r.reachable]:
        arguments.append(f"encoders={{{', '.join(absent)}}}")
    if targets:
        arguments.append(f"allow_targets={json.dumps(targets)}")
    code = (
        "```python\nfrom nemo_desta.models import DestaModel\n\n"
        f"model = DestaModel.from_pretrained({', '.join(arguments)})\n"
        'question = {"role": "user", "content": "<|AUDIO|>\\nWhat do you hear?", "audios": ["x.wav"]}\n'
        "print(model.chat([question]))\n```"
    )
    if targets:
        modules = ", ".join(f"`{module}`" for module in sorted({target.partition(".")[0] for target in targets}))
        code += (
            f"\n\nThis model has parts that are neither in this folder nor in nemo_desta: get {modules} from its "
            "authors, and allow it only if you trust them."
        )
    if any(argument.startswith(("llm=", "encoders=")) for argument in arguments):
        code += "\n\nParts without a hub id must be on your machine: give their paths."
    return code


def _training(config: ModelConfig, record: Mapping[str, Any]) -> str:
    plan = record.get("plan") or {}
    lora = config.llm.lora
    rows = {
        "optimiser steps": record.get("steps"),
        "optimiser": _with_knobs(config.optimizer),
        "learning rate schedule": _with_knobs(config.lr_scheduler or {}),
        "batch": plan
        and f"at most {plan['max_batch_size']} rows or {plan['batch_tokens']:,} positions, x {plan['num_ranks']} "
        f"data-parallel, x {record.get('accumulate_grad_batches') or 1} accumulated",
        "passes over the data": plan and f"{record['epoch']} complete, {record['batches_done']} batches of the next",
        "seed": record.get("seed", plan.get("seed")),
        "projector": _with_knobs(config.perception.projector, key="name"),
        "encoders": "; ".join(
            f"{name}: layers {knobs.get('layer_ids') or 'all'}"
            for name, knobs in config.perception.encoders.items()
            if config.perception.use is None or name in config.perception.use
        ),
        "LoRA": lora and f"r {lora.r}, alpha {lora.alpha}, on {', '.join(lora.target_modules)}",
        "not trained": config.freeze and ", ".join(f"`{pattern}`" for pattern in config.freeze),
    }
    known = [(name, str(value)) for name, value in rows.items() if value not in (None, "", [], {})]
    return _table(("", ""), known) if known else "Not recorded."


def _data(record: Mapping[str, Any]) -> str:
    rows = (record.get("plan") or {}).get("rows") or []
    if not rows:
        return "Not recorded: name the training data here."
    counted = record.get("datasets") or {}
    lines = []
    for name, number, share in rows:
        inside = ", ".join(f"{dataset} ({count:,})" for dataset, count in counted.get(name, {}).items())
        lines.append((name, f"{number:,}", "" if share is None else f"{share:.1%}", inside))
    bad = record.get("bad_rows") or {}
    note = "Rows are counted by the name of their dataset."
    if bad.get("num_bad"):
        note += f" {bad['num_bad']:,} of {bad['num_rows']:,} rows that were read could not be used."
    return _table(("source", "rows", "share of the mix", "datasets (rows)"), lines) + "\n\n" + note


def _with_knobs(values: Mapping[str, Any], key: str = "_target_") -> str:
    rest = ", ".join(f"{name} {value}" for name, value in values.items() if name != key and value is not None)
    return f"`{values[key]}` ({rest})" if key in values and rest else f"`{values[key]}`" if key in values else rest


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
