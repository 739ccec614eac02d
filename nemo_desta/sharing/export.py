"""A trained model as one Hugging Face folder for others: what was trained, and who the frozen parts are.

The folder is a model folder (`DestaModel.from_pretrained` opens it) without any path of this machine, with a model
card, and with LoRA, where it was trained, as a PEFT folder of its own. Nothing is merged into the LLM.
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
from nemo_desta.sharing.place import check_place, whole_folder
from nemo_desta.sharing.references import Reference, refer_all, without_paths
from nemo_desta.sharing.trained import RECORD_FILE, Trained, read_trained
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
    overwrite: bool = False,
    check_identity: bool = True,
    trust_remote_code: bool = False,
    allow_targets: Sequence[str] = (),
) -> Path:
    """Write the folder; returns it. It gets its name when it is complete.

    Args:
        source: a model folder, a run's folder or a checkpoint.
        llm: hub id that the folder shall name for the LLM, or where the LLM is now. encoders: likewise, by name.
        name: of the model in its card; the folder's own by default.
        full_hashes: state the SHA-256 of every byte of the frozen parts, which must be on this machine.
        overwrite: replace an earlier export. check_identity: refuse parts that are not those that were trained with.
        trust_remote_code, allow_targets: what ``source`` may ask for, as in `DestaModel.from_pretrained`; who opens
            the export has to grant the same.

    Raises:
        FileNotFoundError: nothing trained at ``source``. FileExistsError: something is at ``output``.
        IdentityMismatch: a frozen part on this machine has changed since the training.
        ConfigError: a checkpoint of something else; ``full_hashes`` of a part that is not here.
        UntrustedConfig: ``source`` asks for more than was granted.
    """
    output = Path(output).expanduser().absolute()
    trained = read_trained(source, Grant(trust_remote_code, allow_targets))
    check_place(output, trained.place, kind="export", is_earlier=is_export, overwrite=overwrite)
    here = _with_parts(trained.config, llm=llm, encoders=encoders)
    found = identify(here)
    if check_identity:
        repair = "Say which are the right ones (llm=..., encoders=...), or go on regardless: check_identity=False"
        check_frozen(trained.frozen, here, trained=frozen_sources(trained.config), repair=repair)
    config, references = refer_all(trained.config, llm=llm, encoders=encoders)
    used = frozen_sources(config)
    references = {part: references[part] for part in used}
    _warn(references, {**frozen_sources(trained.config), **frozen_sources(here)})
    hashes = _full_hashes(here) if full_hashes else {}
    description = {
        **describe(config, {**found, **trained.frozen}),
        "references": {part: _entry(reference, hashes.get(part)) for part, reference in references.items()},
    }
    description["model"] = without_paths(description["model"])
    record = without_paths(dict(trained.record))

    projector, lora = split_lora(trained.tensors)
    tokenizer = build_tokenizer(_tokenizer_config(trained, here))
    with whole_folder(output) as part:
        write_folder(part, description, projector, tokenizer)
        if lora and config.llm.lora is not None:
            save_lora(part / LORA_FOLDER, config.llm.lora, lora, base_model=config.llm.path)
        card = model_card(
            name or output.name, config, references, record, num_projector=_count(projector), num_lora=_count(lora)
        )
        (part / CARD_FILE).write_text(card, encoding="utf-8")
        if record:
            (part / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return output


def _with_parts(config: ModelConfig, *, llm: str | None, encoders: Mapping[str, str] | None) -> ModelConfig:
    """The config with the parts that are said to be elsewhere on this machine; a hub id only names them."""
    values = to_dict(config)
    if llm is not None and is_local(llm):
        values["llm"]["path"] = llm
    for name, path in (encoders or {}).items():
        if name in values["perception"]["encoders"] and is_local(path):
            values["perception"]["encoders"][name]["path"] = path
    return parse(ModelConfig, values)


def _tokenizer_config(trained: Trained, here: ModelConfig) -> Any:
    own = trained.tokenizer if trained.place.is_dir() or trained.config.llm.tokenizer else here.llm.path
    return replace(here.llm, tokenizer=own)


def _full_hashes(config: ModelConfig) -> dict[str, dict[str, str]]:
    hashes = identify(config, full=True)
    if absent := sorted(set(frozen_sources(config)) - set(hashes)):
        raise ConfigError(f"full_hashes=true reads every byte of the frozen parts; not here: {', '.join(absent)}")
    return hashes


def _entry(reference: Reference, hashes: Mapping[str, str] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"source": reference.source, "revision": reference.revision}
    return entry if hashes is None else {**entry, "sha256": dict(hashes)}


def _warn(references: Mapping[str, Reference], sources: Mapping[str, str]) -> None:
    for part, reference in references.items():
        setting = "llm=..." if part == "llm" else f"encoders={{{part.removeprefix('encoders.')}: ...}}"
        if not reference.reachable:
            logger.warning(
                "%s: no hub id is known for it. The export calls it '%s', and whoever opens that must say where it is "
                "(%s). If it is on the hub, export again with %s",
                part,
                reference.source,
                setting,
                setting,
            )
        elif reference.guess:
            logger.warning(
                "%s: '%s' is called '%s', as its own config.json says; if that is wrong, export with %s",
                part,
                sources[part],
                reference.source,
                setting,
            )


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
