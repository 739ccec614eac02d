"""Published weights of the originals as nemo_desta models: DeSTA2, DeSTA2.5-Audio, ALARM on Whisper alone.

Key maps are in `perception.projector.released`; this module adds the settings with which the model answers as the
original: layers, windows, masks, the position of audio in the prompt. Tensors and parameters must match one to one.
Files are untrusted: they are read as safetensors or with ``weights_only=True``.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig

from nemo_desta.config import (
    LLMConfig,
    ModelConfig,
    PerceptionConfig,
    PromptConfig,
    TranscriptConfig,
    check_keys,
    nearest,
)
from nemo_desta.core import build
from nemo_desta.core.folder import PROJECTOR_PREFIX, save_folder
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import EncoderShape
from nemo_desta.perception.encoders.whisper import GRID
from nemo_desta.perception.projector import build_projector
from nemo_desta.perception.projector.released import from_alarm, from_desta
from nemo_desta.sharing.weight_files import local_download, read_weights
from nemo_desta.sources import local_folder

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
#: Blocks whose outputs DeSTA reads, from 1, by the end of the encoder's name (the originals count from 0).
DESTA_LAYERS = {
    "whisper-tiny": (1, 2, 3, 4),
    "whisper-small": (3, 6, 9, 12),
    "whisper-medium": (6, 12, 18, 24),
    "whisper-large-v3": (8, 16, 24, 32),
}
#: ALARM's ``hidden_states[7, 15, 23, 31]``.
ALARM_LAYERS = (7, 15, 23, 31)
LARGE = "openai/whisper-large-v3"


@dataclass(frozen=True)
class Released:
    """A released model as our config and our tensors."""

    config: ModelConfig
    tensors: dict[str, Tensor]


def write_released(
    kind: str,
    folder: str | Path,
    output: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
) -> Path:
    """A released model as a nemo_desta model folder, without loading its LLM; arguments as `read_released`."""
    released = read_released(kind, folder, llm=llm, encoders=encoders)
    tokenizer = build.build_tokenizer(released.config.llm)
    return save_folder(output, released.config, released.tensors, tokenizer)


def read_released(
    kind: str, folder: str | Path, *, llm: str | None = None, encoders: Mapping[str, str] | None = None
) -> Released:
    """Read the config and tensors of a released model.

    Args:
        kind: "desta2", "desta25" or "alarm".
        folder: the downloaded weights, and for DeSTA2.5 and ALARM their ``config.json``; or a hub id.
        llm, encoders: where the frozen parts are, if not at the original's source; the encoder is ``whisper``.

    Raises:
        ConfigError: an unknown kind; a model with encoders that we do not have; files of another kind.
        FileNotFoundError: no weights. ValueError: a tensor that is surplus, missing, or of another shape.
    """
    if kind not in READERS:
        raise ConfigError(f"unknown kind of released model '{kind}'.{nearest(kind, READERS)}")
    check_keys(encoders or {}, ["whisper"], "encoders")
    folder = local_download(folder)
    config_file = folder / CONFIG_FILE
    original = json.loads(config_file.read_text()) if config_file.is_file() else {}
    state = read_weights(folder)
    released = READERS[kind](folder, original, state, llm, (encoders or {}).get("whisper"))
    _check_complete(released)
    return released


def _desta25(
    folder: Path, original: Mapping[str, Any], state: dict[str, Tensor], llm: str | None, whisper: str | None
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
    folder: Path, original: Mapping[str, Any], state: dict[str, Tensor], llm: str | None, whisper: str | None
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
    folder: Path, state: dict[str, Tensor], *, llm: str, whisper: str, encoder: str, prompt: PromptConfig
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
    return _released(llm, whisper, layers, knobs, prompt, connector, whole_windows=True)


def _alarm(
    folder: Path, original: Mapping[str, Any], state: dict[str, Tensor], llm: str | None, whisper: str | None
) -> Released:
    audio = from_alarm(state)
    names = sorted({name.split(".")[1] for name in audio if name.startswith("adapters.")})
    if names != ["whisper"]:
        others = ", ".join(name for name in names if name != "whisper")
        raise ConfigError(
            f"this ALARM model hears with {others or 'no encoder'} beside Whisper, which nemo_desta cannot do yet; "
            "the single-encoder Whisper models can be imported. (All tensors of its projector have their places: "
            "nemo_desta.perception.projector.released.from_alarm.)"
        )
    adapter = "adapters.whisper."
    first, layer_logits = audio[adapter + "bodies.0.stages.0.conv.weight"], audio.get(adapter + "layer_logits")
    stages = {int(name.split(".")[5]) for name in audio if name.startswith(adapter + "bodies.0.stages.")}
    knobs = {
        "name": "conv",
        "markers": True,
        "original_masks": True,
        "adapter": {
            "hidden_size": first.shape[1],
            "depth": len(stages) - 1,
            "norm": "batch" if adapter + "bodies.0.stages.0.norm.running_mean" in audio else "layer",
            "mix": "after" if any(name.startswith(adapter + "bodies.1.") for name in audio) else "before",
        },
    }
    layers = tuple(original.get("audio_encoder_layers") or ALARM_LAYERS[: 1 if layer_logits is None else None])
    return _released(
        llm or _beside(folder, original.get("base_model_name", "Qwen/Qwen3-4B-Thinking-2507")),
        whisper or _beside(folder, original.get("audio_encoder_name", LARGE)),
        layers,
        knobs,
        PromptConfig(),
        audio,
    )


#: By kind.
READERS: dict[str, Callable[..., Released]] = {"desta2": _desta2, "desta25": _desta25, "alarm": _alarm}


def _released(
    llm: str,
    whisper: str,
    layers: tuple[int, ...],
    projector: dict[str, Any],
    prompt: PromptConfig,
    tensors: dict[str, Tensor],
    **encoder: Any,
) -> Released:
    perception = PerceptionConfig(
        encoders={"whisper": {"name": "whisper", "path": whisper, "layer_ids": list(layers), **encoder}},
        projector=projector,
    )
    prefixed = {
        PROJECTOR_PREFIX + name: tensor.long() if name.endswith("num_batches_tracked") else tensor.float()
        for name, tensor in tensors.items()
    }
    return Released(ModelConfig(llm=LLMConfig(path=llm), perception=perception, prompt=prompt), prefixed)


def _check_complete(released: Released) -> None:
    """Compare with the config's projector, built on the meta device; errors name a tensor."""
    perception = released.config.perception
    knobs = dict(perception.projector)
    tensors = {name.removeprefix(PROJECTOR_PREFIX): t for name, t in released.tensors.items()}
    outputs = [tensor for name, tensor in tensors.items() if name.endswith("output.weight") and name.count(".") < 4]
    widths = [t.shape[-1] for name, t in tensors.items() if name.endswith(("queries", "bodies.0.input.weight"))]
    hidden = [t.shape[1] for name, t in tensors.items() if name.endswith("bodies.0.stages.0.conv.weight")]
    layer_ids = tuple(perception.encoders["whisper"]["layer_ids"])
    shape = EncoderShape((widths or hidden)[0], layer_ids, num_layers=max(layer_ids), frame_grid=GRID)
    with torch.device("meta"):
        projector = build_projector(knobs.pop("name"), {"whisper": shape}, outputs[0].shape[0], **knobs)
    own = projector.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            raise ValueError(f"the released weights lack '{name}', which the projector has")
        if name not in own:
            raise ValueError(f"'{name}' of the released weights has no place in the projector")
        if own[name].shape != tensors[name].shape:
            found, expected = tuple(tensors[name].shape), tuple(own[name].shape)
            raise ValueError(f"'{name}' of the released weights is {found}, the projector's {expected}")


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
