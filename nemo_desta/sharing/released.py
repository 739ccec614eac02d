"""Published weights of the originals as nemo_desta models: DeSTA2, DeSTA2.5-Audio, and ALARM (`released_alarm`).

Key maps are in `perception.projector.released`; this module adds the settings with which the model answers as the
original: layers, windows, masks, the position of audio in the prompt. Tensors and parameters must match one to one.
Files are untrusted: they are read as safetensors or with ``weights_only=True``.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import WhisperConfig

from nemo_desta.config import PerceptionConfig, PromptConfig, TranscriptConfig, check_keys, nearest
from nemo_desta.core import build
from nemo_desta.core.folder import ENCODER_FOLDER, describe, write_folder
from nemo_desta.core.frozen import identify
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.whisper import GRID
from nemo_desta.perception.projector.released import from_desta
from nemo_desta.sharing.alarm_encoders import PUBLISHED
from nemo_desta.sharing.released_alarm import read_alarm
from nemo_desta.sharing.released_model import Released, fit
from nemo_desta.sharing.weight_files import local_download, open_weights
from nemo_desta.sources import local_folder

CONFIG_FILE = "config.json"
#: Blocks whose outputs DeSTA reads, from 1, by the end of the encoder's name (the originals count from 0).
DESTA_LAYERS = {
    "whisper-tiny": (1, 2, 3, 4),
    "whisper-small": (3, 6, 9, 12),
    "whisper-medium": (6, 12, 18, 24),
    "whisper-large-v3": (8, 16, 24, 32),
}
KINDS = ("desta2", "desta25", "alarm")


def write_released(
    kind: str,
    folder: str | Path,
    output: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    original_masks: bool = False,
) -> Path:
    """A released model as a nemo_desta model folder, without loading its LLM; arguments as `read_released`.

    Encoders that the released model contains are written into the folder too; its config names them by hub id.
    """
    output = Path(output)
    own = output / ENCODER_FOLDER
    options = {"llm": llm, "encoders": encoders, "original_masks": original_masks}
    released = read_released(kind, folder, encoder_folder=own, **options)
    perception = released.config.perception
    named = {
        name: {**knobs, "path": PUBLISHED[name].source} if knobs["path"] == str(own / name) else knobs
        for name, knobs in perception.encoders.items()
    }
    config = replace(released.config, perception=replace(perception, encoders=named))
    tokenizer = build.build_tokenizer(config.llm)
    return write_folder(output, describe(config, identify(released.config)), released.tensors, tokenizer)


def read_released(
    kind: str,
    folder: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    original_masks: bool = False,
    encoder_folder: str | Path | None = None,
) -> Released:
    """Read the config and tensors of a released model.

    Args:
        kind: "desta2", "desta25" or "alarm".
        folder: the downloaded weights, and for DeSTA2.5 and ALARM their ``config.json``; or a hub id.
        llm, encoders: where the frozen parts are, if not at the original's source; DeSTA's encoder is ``whisper``,
            ALARM's are ``whisper``, ``w2vbert``, ``muq``, ``sslam``.
        original_masks: ALARM's streams are masked as released: an answer depends on the other clips of a batch.
        encoder_folder: where to write the encoders that an ALARM model contains; None: they come from the hub.

    Raises:
        ConfigError: an unknown kind; a setting that is not implemented; files of another kind.
        FileNotFoundError: no weights. ValueError: a tensor that is surplus, missing, or of another shape.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of released model '{kind}'.{nearest(kind, KINDS)}")
    if original_masks and kind != "alarm":
        raise ConfigError(f"original_masks is for alarm, not for {kind}")
    folder = local_download(folder)
    config_file = folder / CONFIG_FILE
    original = json.loads(config_file.read_text()) if config_file.is_file() else {}
    stored, encoders = open_weights(folder), encoders or {}
    if kind == "alarm":
        options = {"original_masks": original_masks, "encoder_folder": encoder_folder and Path(encoder_folder)}
        return read_alarm(folder, original, stored, llm, encoders, **options)
    check_keys(encoders, ["whisper"], "encoders")
    read = _desta25 if kind == "desta25" else _desta2
    return read(folder, original, stored, llm, encoders.get("whisper"))


def _desta25(
    folder: Path, original: Mapping[str, Any], state: Mapping[str, Tensor], llm: str | None, whisper: str | None
) -> Released:
    needed = ("llm_model_id", "encoder_model_id", "connector_mode")
    if missing := [key for key in needed if key not in original]:
        raise ConfigError(f"'{folder}' is no DeSTA2.5 model: its {CONFIG_FILE} lacks {', '.join(missing)}")
    if original["connector_mode"] != "qformer_1":
        raise ConfigError(f"connector_mode is '{original['connector_mode']}'; only 'qformer_1' is known")
    if original.get("use_lora") or any(".lora_" in name for name in state):
        raise ConfigError("this model trained LoRA beside its connector; only the connector can be imported")
    encoder = original["encoder_model_id"]
    return _desta(
        folder,
        state,
        llm=llm or _beside(folder, original["llm_model_id"]),
        whisper=whisper or _beside(folder, encoder),
        encoder=encoder,
        prompt=PromptConfig(
            audio_locator_tag=original.get("audio_locator", "<|AUDIO|>"),
            audio_tags=["<start_audio>", "<end_audio>"],
            transcript=TranscriptConfig(enabled=True, max_tokens=100),
        ),
    )


def _desta2(
    folder: Path, original: Mapping[str, Any], state: Mapping[str, Tensor], llm: str | None, whisper: str | None
) -> Released:
    encoder = original.get("encoder_model_id", "openai/whisper-small")
    return _desta(
        folder,
        state,
        llm=llm or _beside(folder, original.get("llm_model_id", "meta-llama/Meta-Llama-3-8B-Instruct")),
        whisper=whisper or _beside(folder, encoder),
        encoder=encoder,
        prompt=PromptConfig(audio_role="audio", transcript=TranscriptConfig(enabled=True, max_tokens=100)),
    )


def _desta(
    folder: Path, state: Mapping[str, Tensor], *, llm: str, whisper: str, encoder: str, prompt: PromptConfig
) -> Released:
    """Both DeSTAs: a Q-Former over whole windows of Whisper, silence included."""
    ending = "layer_prompts.0"
    found = next((name for name in state if name == ending or name.endswith("." + ending)), None)
    if found is None:
        raise ConfigError(f"the weights in '{folder}' are no DeSTA connector: no tensor is called '...{ending}'")
    prefix = found.removesuffix(ending)
    connector = from_desta({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    branch = "branches.whisper."
    num_taps, num_queries, width = connector[branch + "queries"].shape
    layers = next((ids for name, ids in DESTA_LAYERS.items() if encoder.rstrip("/").endswith(name)), None)
    if layers is None or len(layers) != num_taps:
        raise ConfigError(
            f"which layers the connector reads goes by the encoder's name; '{encoder}' has none for {num_taps} layers "
            f"(known: {', '.join(DESTA_LAYERS)})"
        )
    heads, window_secs = _whisper_facts(whisper, width)
    knobs = {
        "name": "qformer",
        "num_queries": num_queries,
        "num_layers": 1 + max(int(name.split(".")[3]) for name in connector if name.startswith(branch + "layers.")),
        "num_heads": heads,
        "feed_forward_size": connector[branch + "layers.0.feed_forward.up.weight"].shape[0],
        "chunk_secs": window_secs,
        "mask_padding": False,
    }
    own = {"name": "whisper", "path": whisper, "layer_ids": list(layers), "whole_windows": True}
    sizes = {"widths": {"whisper": width}, "output_size": connector["output.weight"].shape[0]}
    return fit(llm, PerceptionConfig(encoders={"whisper": own}, projector=knobs), prompt, connector, **sizes)


def _whisper_facts(whisper: str, width: int) -> tuple[int | None, float]:
    """Attention heads (None: width / 64) and seconds of the window; those of the released sizes without a folder."""
    folder = local_folder(whisper)
    if folder is None:
        return None, 30
    config = WhisperConfig.from_pretrained(folder)
    if config.d_model != width:
        raise ConfigError(
            f"the connector was trained on an encoder of width {width}; '{whisper}' has {config.d_model}"
        )
    secs = config.max_source_positions / GRID.frame_rate
    return config.encoder_attention_heads, int(secs) if secs == int(secs) else secs


def _beside(folder: Path, source: str) -> str:
    """A source that an original names: a folder inside its own folder, else a hub id."""
    inside = folder / source
    return str(inside.resolve()) if inside.is_dir() and folder.resolve() in inside.resolve().parents else source
