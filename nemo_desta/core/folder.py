"""Model folders: the trained tensors as safetensors, and a JSON config that identifies the frozen parts.

A model folder holds ``config.json`` (model config, format, fingerprints), ``projector.safetensors`` (the projector
and, if any, LoRA tensors) and the tokenizer. The frozen LLM and encoders are not copied. `export` writes the same kind
of folder for publishing, with LoRA in a subfolder.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from nemo_desta.config import ModelConfig, nearest, parse, to_dict
from nemo_desta.core.frozen import check_identity as check_frozen
from nemo_desta.core.frozen import check_llm, fetch, frozen_sources, identify, setting_of
from nemo_desta.core.lora import LORA_FOLDER, load_lora
from nemo_desta.core.tokenizers import MODEL_TYPE, with_audio_token
from nemo_desta.core.trust import NOTHING, Grant, check_model
from nemo_desta.errors import ConfigError
from nemo_desta.package_info import __version__
from nemo_desta.perception.tensor_files import save_tensors
from nemo_desta.sources import fetch_folder, is_local, local_folder

logger = logging.getLogger(__name__)

FORMAT = 1
#: How transformers and vLLM name the class of a model folder, beside its `MODEL_TYPE` (`nemo_desta.hf`).
ARCHITECTURE = "DestaForConditionalGeneration"
#: Auto classes of transformers that find it; not every version has all of them.
AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "projector.safetensors"
TOKENIZER_FILE = "tokenizer_config.json"
#: What is downloaded of a model on the hub: data only.
FOLDER_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]
#: Encoders that a model folder may contain, each a folder below this one; they are preferred to the config's paths.
ENCODER_FOLDER = "encoders"
PROJECTOR_PREFIX = "perception.projector."
#: Where a run's folder has its model: its own, or that of the only run in an experiment's folder.
IN_RUNS = ("model", "*/model")


def is_trained_name(name: str) -> bool:
    """Whether a state-dict entry belongs in a checkpoint: the projector with its buffers, and LoRA."""
    return name.startswith(PROJECTOR_PREFIX) or ".lora_" in name


def check_trained_names(own: Iterable[str], found: Iterable[str]) -> None:
    """Compare the names of a model's trained tensors with those of a checkpoint.

    Raises:
        ValueError: a tensor is missing or surplus.
    """
    own, found = set(own), set(found)
    if own != found:
        missing, surplus = sorted(own - found), sorted(found - own)
        raise ValueError(f"checkpoint does not fit this model: missing {missing[:5]}, surplus {surplus[:5]}")


def save_folder(folder: str | Path, config: ModelConfig, tensors: dict[str, torch.Tensor], tokenizer: Any) -> Path:
    """Write a model folder; each file is renamed to its final name when it is complete."""
    return write_folder(Path(folder), describe(config, identify(config)), tensors, tokenizer)


def describe(config: ModelConfig, fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The content of a model folder's config.json."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "nemo_desta": __version__,
        "model": to_dict(replace(config, llm=replace(config.llm, tokenizer=None))),  # the tokenizer is in the folder
        "frozen": fingerprints,
    }


def is_model_folder(folder: Path) -> bool:
    """Whether a folder was written by `save_folder` or an export."""
    return "nemo_desta" in _description(folder)


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `export`, which refers to the frozen parts by name."""
    return "references" in _description(folder)


def _description(folder: Path) -> Mapping[str, Any]:
    """The content of the folder's config.json; empty where there is none."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_model(folder: Path) -> Path:
    """The model folder that ``folder`` is, or that a run has there (``runs/x`` -> ``runs/x/training/model``).

    Raises:
        FileNotFoundError: none; or several runs, which the message names.
    """
    if (folder / CONFIG_FILE).is_file() or not folder.is_dir():
        return folder
    for pattern in IN_RUNS:
        found = sorted(path.parent for path in folder.glob(f"{pattern}/{CONFIG_FILE}"))
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise FileNotFoundError(f"'{folder}' holds several models: {names}; give the path of one")
        if found:
            logger.info("opening %s", found[0])
            return found[0]
    raise FileNotFoundError(
        f"'{folder}' is not a nemo_desta model folder: {CONFIG_FILE} is missing, here and in model/"
    )


def write_folder(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: Any
) -> Path:
    """Write the files of a model folder. The tokenizer gets the audio's token, and the description names it."""
    tag = description["model"]["prompt"]["audio_locator_tag"]
    tokenizer, number = with_audio_token(tokenizer, tag)
    description = {**description, "audio_token": tag, "audio_token_index": number}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    part = folder / (WEIGHTS_FILE + ".part")
    save_tensors(weights, part)
    part.replace(folder / WEIGHTS_FILE)
    part = folder / (CONFIG_FILE + ".part")
    part.write_text(json.dumps(description, indent=1) + "\n")
    part.replace(folder / CONFIG_FILE)
    save_tokenizer(folder, tokenizer)
    return folder


def load_folder(
    folder: str | Path, grant: Grant = NOTHING
) -> tuple[ModelConfig, dict[str, torch.Tensor], dict[str, dict[str, str]]]:
    """Read a model folder: config, tensors, fingerprints of the frozen parts.

    Raises:
        FileNotFoundError: not a model folder; the message says which file is missing.
        ValueError: a folder of a newer format.
        UntrustedConfig: its config.json needs more than ``grant`` allows.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"'{folder}' is not a nemo_desta model folder: {name} is missing")
    description = json.loads((folder / CONFIG_FILE).read_text())
    if description.get("format") != FORMAT:
        raise ValueError(f"'{folder}' has format {description.get('format')}; this version reads format {FORMAT}")
    config = parse(ModelConfig, check_model(description["model"], folder, grant))
    tensors = load_file(folder / WEIGHTS_FILE)
    if (folder / LORA_FOLDER).is_dir():
        tensors |= load_lora(folder / LORA_FOLDER)
    return config, tensors, description["frozen"]


def open_model(
    source: str,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    check_identity: bool = True,
    trust_remote_code: bool = False,
    allow_targets: Sequence[str] = (),
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Config, with the frozen parts found on this machine, and trained tensors of a model folder, run or hub id.

    ``trust_remote_code``, ``allow_targets``: what its config may use, see `Grant`.

    Raises:
        UntrustedConfig: its config.json needs more than that.
        IdentityMismatch: a frozen part that differs from the one of the training; with ``check_identity=False`` only
            an LLM of another width.
        FileNotFoundError: no model folder, or a part that is not where the config says.
    """
    folder = find_model(local_folder(source) or fetch_folder(source, FOLDER_FILES))
    saved, tensors, frozen = load_folder(folder, Grant(trust_remote_code, allow_targets))
    config = relocate(saved, folder, llm=llm, encoders=encoders)
    if check_identity:
        fetch(frozen, config)
        check_frozen(frozen, config, trained=frozen_sources(saved))
    check_llm(config, tensors, compare_vocabulary=check_identity and "llm" not in frozen)
    return config, tensors


def load_projector(source: str | Path | Mapping[str, str | Path], projector: nn.Module) -> int:
    """Initialise a projector from a model folder, run or safetensors file (stage-wise training); returns the count.

    The projector must have every tensor of the source. Its further parameters keep their initial values and are named
    in the log. A mapping gives one source per encoder; of each, only the tensors of that encoder's own part are taken
    (``<part>.<encoder>.``, such as its adapter), and all of them must be there.

    Raises:
        ValueError: a tensor that the projector or the source does not have, or of another shape; an encoder without
            tensors of its own.
    """
    own = projector.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for encoder, one in source.items() if isinstance(source, Mapping) else [(None, source)]:
        part = re.compile("" if encoder is None else rf"\w+\.{re.escape(encoder)}\.")
        path = find_model(Path(one)) / WEIGHTS_FILE if Path(one).is_dir() else Path(one)
        with safe_open(path, "pt") as file:
            stored = {name.removeprefix(PROJECTOR_PREFIX): name for name in file.keys()}
            found = {name: file.get_tensor(full) for name, full in stored.items() if part.match(name)}
        if encoder is not None:
            wanted = {name for name in own if part.match(name)}
            if missing := sorted(wanted - set(found)) or [f"*.{encoder}.*"] * (not wanted):
                raise ValueError(f"init_from of encoder '{encoder}': '{path}' or this projector lacks '{missing[0]}'")
        for name, tensor in found.items():
            if name not in own:
                raise ValueError(f"'{path}': tensor '{name}' has no place in this projector")
            if own[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, this projector has {tuple(own[name].shape)}"
                raise ValueError(f"'{path}': '{name}' is {shapes}")
        tensors |= found
    projector.load_state_dict(tensors, strict=False)
    if missing := sorted(set(own) - set(tensors)):
        logger.info("projector tensors with initial values: %s", ", ".join(missing))
    return len(tensors)


def relocate(
    config: ModelConfig, folder: Path, *, llm: str | None = None, encoders: Mapping[str, str] | None = None
) -> ModelConfig:
    """A saved config with the frozen parts where they are on this machine; the tokenizer is the folder's own.

    An encoder is, in this order, where ``encoders`` says, in the folder itself, or where the config says.

    Raises:
        FileNotFoundError: a local path of the training does not exist any more, or a name in an export is not on the
            hub.
    """
    named = dict(config.perception.encoders)
    contained = {name: folder / ENCODER_FOLDER / name for name in named if name.isidentifier()}
    places = {name: str(path) for name, path in contained.items() if path.is_dir()} | dict(encoders or {})
    for name, path in places.items():
        if name not in named:
            raise ConfigError(f"encoders={{...}} names '{name}'.{nearest(name, named)}")
        named[name] = {**named[name], "path": path}
    config = replace(
        config,
        llm=replace(config.llm, path=llm or config.llm.path, tokenizer=str(folder)),
        perception=replace(config.perception, encoders=named, init_from=None),
    )
    for part, source in frozen_sources(config).items():
        on_hub = not is_local(source) and "/" in source
        if not on_hub and local_folder(source) is None:
            raise FileNotFoundError(f"{part}: nothing at '{source}'. Say where it is: {setting_of(part)}")
    return config


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files, readable on both stacks."""
    tokenizer.save_pretrained(folder)
    _make_portable(folder / TOKENIZER_FILE)


def _make_portable(file: Path) -> None:
    """Make transformers 5's file readable for transformers 4, and remove the tokenizer's path on this machine."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    for key in ("name_or_path", "is_local", "local_files_only"):
        settings.pop(key, None)
    if settings.get("tokenizer_class") == "TokenizersBackend":  # its name in transformers 5
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(further := settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = further
        del settings["extra_special_tokens"]
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
