"""Released ALARM models as nemo_desta models: the single-encoder ones, ALARM-CA and ALARM-P.

Settings come from the model's config.json, the depth of ALARM-CA's fusion from its tensors. The encoders compute as in
ALARM, windows filled with silence included: the adapters were trained on that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_desta.config import PerceptionConfig, PromptConfig, check_keys, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.muq_mel import SAMPLING_RATE as MUQ_RATE
from nemo_desta.perception.projector.released import from_alarm
from nemo_desta.sharing.alarm_encoders import PUBLISHED, num_blocks, place
from nemo_desta.sharing.released_model import Released, fit

#: ALARM's end of a thought over its budget, to the letter.
THINKING_END = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
LLM = "Qwen/Qwen3-4B-Thinking-2507"
BODIES = {"downsampler_conformer": "downsampler", "mlp": "mlp", "identity": "identity"}
#: Our name of each setting of ALARM-P's fusion, which has one value per side encoder.
PERCEIVER = {
    "num_latents": "num_latents",
    "num_latent_channels": "latent_size",
    "num_self_attention_heads": "num_heads",
    "num_self_attention_blocks": "num_blocks",
    "num_self_attention_layers_per_block": "layers_per_block",
    "num_cross_attention_layers": "num_reads",
    "first_cross_attention_layer_shared": "share_reads",
    "first_self_attention_block_shared": "share_blocks",
}


def read_alarm(
    folder: Path,
    original: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    llm: str | None,
    encoders: Mapping[str, str],
    *,
    original_masks: bool = False,
    encoder_folder: Path | None = None,
) -> Released:
    """Read a released ALARM model.

    Args:
        folder: for messages. ``original``: its config.json. ``stored``: its tensors.
        llm, encoders: see `read_released`.
        original_masks: mask the streams as the original, whose clips depend on the others of their batch; False: by
            each stream's own length.
        encoder_folder: see `alarm_encoders.place`.

    Raises:
        ConfigError: not ALARM's config, or a setting that is not implemented. ValueError: see `fit`.
    """
    if missing := [key for key in ("audio_adapter_configs", "audio_fusion_config") if key not in original]:
        raise ConfigError(f"'{folder}' is no ALARM model: its config.json lacks {', '.join(missing)}")
    adapters = {adapter["encoder_name"]: adapter for adapter in original["audio_adapter_configs"]}
    for name, adapter in adapters.items():
        if name not in PUBLISHED:
            raise ConfigError(f"unknown encoder '{name}' of ALARM.{nearest(name, PUBLISHED)}")
        _check_adapter(name, adapter)
    check_keys(encoders, adapters, "encoders")
    if original.get("use_explicit_audio_tokens"):
        raise ConfigError("use_explicit_audio_tokens is true; only models with learned markers can be imported")
    projector = from_alarm(stored)
    fusion = original["audio_fusion_config"]
    sides = fusion.get("conditional_encoders") or []
    names = [fusion["main_encoder"], *sides] if sides else list(adapters)
    windows = {one["encoder_name"]: one.get("max_time") for one in original.get("audio_encoder_configs", ())}
    found = {
        name: {
            "path": place(name, stored, encoders.get(name), encoder_folder),
            **_encoder(name, adapters[name]["audio_encoder_layers"], windows.get(name), num_blocks(name, stored)),
        }
        for name in names
    }
    knobs = {
        "name": "conv",
        "markers": "markers.start" in projector,
        "original_masks": original_masks,
        "adapters": {name: _adapter(adapters[name]) for name in names},
        "fusion": _fusion(fusion, sides, projector),
    }
    inputs = dict(zip(sides, fusion.get("conditional_embedding_dim") or (), strict=False))
    return fit(
        llm or LLM,
        PerceptionConfig(encoders=found, projector=knobs, sampling_rate=MUQ_RATE if "muq" in names else 16_000),
        PromptConfig(thinking_end=THINKING_END),
        projector,
        widths={name: adapters[name].get("encoder_embedding_dim") or inputs[name] for name in names},
        output_size=adapters[names[0]]["llm_embedding_dim"],
    )


def _check_adapter(name: str, adapter: Mapping[str, Any]) -> None:
    kind = adapter["adapter_name"]
    if kind not in BODIES:
        raise ConfigError(f"unknown adapter '{kind}' of '{name}'.{nearest(kind, BODIES)}")
    if adapter.get("use_conformer"):
        raise ConfigError(f"the adapter of '{name}' has conformer blocks (use_conformer), which are not implemented")
    mix = (adapter.get("layer_fusion_config") or {}).get("layer_fusion_type", "weighted_average")
    if mix != "weighted_average":
        raise ConfigError(f"the adapter of '{name}' mixes layers by '{mix}'; only weighted_average is implemented")


def _adapter(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """ALARM's settings of an adapter as ours; see `Adapter`."""
    body = BODIES[adapter["adapter_name"]]
    knobs = {"body": body, "mix": "before" if adapter.get("pre_average", True) else "after"}
    if body == "identity":
        return {**knobs, "project": adapter.get("use_llm_proj", True)}
    knobs["hidden_size"] = adapter["adapter_embedding_dim"]
    if body == "mlp":
        return knobs
    return {**knobs, "depth": adapter.get("downsampler_depth", 1), "norm": adapter.get("norm_type", "layer")}


def _encoder(name: str, taps: list[int], window: float | None, num_layers: int | None) -> dict[str, Any]:
    published = PUBLISHED[name]
    knobs = {"name": published.kind, **(published.knobs or {}), "layer_ids": published.layer_ids(taps, name)}
    if published.window and window:
        knobs[published.window] = window
    if name == "whisper" and num_layers in taps:
        knobs["final_norm"] = True  # transformers' last hidden state of Whisper is after it
    return knobs


def _fusion(fusion: Mapping[str, Any], sides: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any] | str:
    """ALARM's settings of a fusion as ours."""
    kind = fusion.get("fusion_type")
    if kind == "crossattention":
        readers = [name.split(".") for name in tensors if name.startswith("fusion.readers.")]
        return {
            "name": "cross_attention",
            "hidden_size": fusion["hidden_dim"],
            "num_heads": fusion["num_attention_heads"],
            "feed_forward_size": fusion["ffn_dims"],
            "num_layers": {side: len({parts[3] for parts in readers if parts[2] == side}) for side in sides},
            "dropout": fusion.get("dropout", 0.1),
            "skip": fusion.get("use_skip_connection", False),
        }
    if kind == "multiperceiver":
        if fusion.get("num_cross_attention_heads") != fusion.get("num_self_attention_heads"):
            raise ConfigError("this ALARM-P has other numbers of heads in cross- than in self-attention")
        values = {ours: fusion[theirs] for theirs, ours in PERCEIVER.items() if theirs in fusion}
        perceivers = {side: {ours: value[i] for ours, value in values.items()} for i, side in enumerate(sides)}
        return {"name": "perceiver", "perceivers": perceivers}
    if kind != "sum" or sides:
        raise ConfigError(f"unknown fusion '{kind}' of ALARM.{nearest(str(kind), ('sum', 'crossattention'))}")
    return "sum"
