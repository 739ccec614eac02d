"""Exports a trained model as one Hugging Face folder: the trained part, and references to the frozen parts.

The export is a model folder (`DestaModel.from_pretrained` opens it) without any path of this machine, plus a model
card. A trained LoRA adapter is saved as a PEFT folder inside; it is not merged into the LLM.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_desta.config import ModelConfig, parse, to_dict
from nemo_desta.core.build import build_tokenizer
from nemo_desta.core.folder import describe, is_export, write_folder
from nemo_desta.core.frozen import check_identity as check_frozen
from nemo_desta.core.frozen import frozen_sources, identify
from nemo_desta.core.lora import LORA_FOLDER, save_lora, split_lora
from nemo_desta.core.trust import Grant
from nemo_desta.errors import ConfigError
from nemo_desta.sharing.card import model_card
from nemo_desta.sharing.carry_code import AUTO_MAP, write_code
from nemo_desta.sharing.output_folder import atomic_folder, check_output
from nemo_desta.sharing.references import Reference, refer_all, without_paths
from nemo_desta.sharing.trained import RECORD_FILE, read_trained
from nemo_desta.sources import is_local

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    name: str | None = None,
    full_hashes: bool = False,
    carry_code: bool = False,
    overwrite: bool = False,
    check_identity: bool = True,
    trust_remote_code: bool = False,
    allow_targets: Sequence[str] = (),
) -> Path:
    """Write the folder and return it; it appears under its name when it is complete.

    Args:
        source: a model folder, a run's folder or a checkpoint.
        llm: hub id to write for the LLM, or the LLM's path on this machine. encoders: likewise, by name.
        name: of the model in its card; the folder's own by default.
        full_hashes: also write the SHA-256 of all files of the frozen parts, which must be on this machine.
        carry_code: also write this package's code for `trust_remote_code=True`, see `carry_code`.
        overwrite: replace an earlier export. check_identity: refuse frozen parts other than those of the training.
        trust_remote_code, allow_targets: permissions for ``source``, as in `DestaModel.from_pretrained`; opening the
            export needs the same permissions.

    Raises:
        FileNotFoundError: no trained model at ``source``. FileExistsError: something is at ``output``.
        IdentityMismatch: a frozen part on this machine has changed since the training.
        ConfigError: a checkpoint of something else; ``full_hashes`` of a part that is not on this machine.
        UntrustedConfig: ``source`` needs a permission that was not given.
    """
    output = Path(output).expanduser().absolute()
    trained = read_trained(source, Grant(trust_remote_code, allow_targets))
    check_output(output, trained.path, kind="export", is_earlier=is_export, overwrite=overwrite)
    here = _with_parts(trained.config, llm=llm, encoders=encoders)
    found = identify(here)
    if check_identity:
        repair = "Give the right ones (llm=..., encoders=...), or give check_identity=false to export anyway"
        check_frozen(trained.frozen, here, trained=frozen_sources(trained.config), repair=repair)
    config, references = refer_all(trained.config, llm=llm, encoders=encoders)
    references = {part: references[part] for part in frozen_sources(config)}
    _warn(references, {**frozen_sources(trained.config), **frozen_sources(here)})
    hashes = identify(here, full=True) if full_hashes else {}
    if full_hashes and (absent := sorted(set(frozen_sources(here)) - set(hashes))):
        raise ConfigError(f"full_hashes=true reads every byte of the frozen parts; not here: {', '.join(absent)}")
    entries = {
        part: {"source": reference.source, "revision": reference.revision}
        | ({"sha256": dict(hashes[part])} if part in hashes else {})
        for part, reference in references.items()
    }
    description = {**describe(config, {**found, **trained.frozen}), "references": entries}
    description["model"] = without_paths(description["model"])
    if carry_code:
        description["auto_map"] = AUTO_MAP
    record = without_paths(dict(trained.record))

    projector, lora = split_lora(trained.tensors)
    own = trained.path.is_dir() or trained.config.llm.tokenizer
    tokenizer = build_tokenizer(replace(here.llm, tokenizer=trained.tokenizer if own else here.llm.path))
    with atomic_folder(output) as part:
        write_folder(part, description, projector, tokenizer)
        if carry_code:
            write_code(part)
        if lora and config.llm.lora is not None:
            save_lora(part / LORA_FOLDER, config.llm.lora, lora, base_model=config.llm.path)
        counts = {"num_projector": _count(projector), "num_lora": _count(lora)}
        card = model_card(name or output.name, config, references, record, **counts)
        (part / CARD_FILE).write_text(card, encoding="utf-8")
        if record:
            (part / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return output


def _with_parts(config: ModelConfig, *, llm: str | None, encoders: Mapping[str, str] | None) -> ModelConfig:
    """The config with the given local paths of parts; a hub id among them is only a name for the export."""
    values = to_dict(config)
    if llm is not None and is_local(llm):
        values["llm"]["path"] = llm
    for name, path in (encoders or {}).items():
        if name in values["perception"]["encoders"] and is_local(path):
            values["perception"]["encoders"][name]["path"] = path
    return parse(ModelConfig, values)


def _warn(references: Mapping[str, Reference], sources: Mapping[str, str]) -> None:
    for part, reference in references.items():
        setting = "llm=..." if part == "llm" else f"encoders={{{part.removeprefix('encoders.')}: ...}}"
        if not reference.reachable:
            logger.warning(
                "%s: no hub id is known. The export names it '%s'; to open the export one must give its path (%s). "
                "If it is on the hub, export again with %s",
                *(part, reference.source, setting, setting),
            )
        elif reference.guess:
            logger.warning(
                "%s: '%s' is named '%s' in the export, from its own config.json; if that is wrong, export with %s",
                *(part, sources[part], reference.source, setting),
            )


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
