"""ALARM's four encoders: what their published checkpoints are, and their weights out of a released ALARM model.

A released model contains its encoders' weights but not their configs. Those of the published sizes are here.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.eat_model import EatConfig
from nemo_desta.perception.encoders.muq_model import MuqConfig
from nemo_desta.sharing.weight_files import StoredTensors
from nemo_desta.sources import local_folder

CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE = "config.json", "preprocessor_config.json", "model.safetensors"


@dataclass(frozen=True)
class Published:
    """One of ALARM's encoders.

    Attributes:
        kind: its name in our registry.
        source: hub id.
        config: its config.json.
        extractor: its preprocessor_config.json, where that is read.
        first_tap: ALARM's number of the output of block 1; whatever is below it is no block's output.
        window: our setting for the seconds of its windows, which ALARM calls ``max_time``.
        knobs: further settings with which it computes as in ALARM.
    """

    kind: str
    source: str
    config: Mapping[str, Any]
    extractor: Mapping[str, Any] | None = None
    first_tap: int = 1
    window: str | None = None
    knobs: Mapping[str, Any] | None = None

    def layer_ids(self, taps: list[int], where: str) -> list[int]:
        """ALARM's tap numbers as 1-based blocks.

        Raises:
            ConfigError: a tap of what enters block 1, which is no block's output.
        """
        ids = [tap - self.first_tap + 1 for tap in taps]
        if min(ids) < 1:
            raise ConfigError(
                f"{where} reads {taps}: {min(taps)} is what enters its first block, not a block's output"
            )
        return ids


WHISPER = {
    "model_type": "whisper",
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
}
W2VBERT = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "swish",
    "position_embeddings_type": "relative_key",
}
#: Without this file transformers would guess another extractor for w2v-BERT.
W2VBERT_FEATURES = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor",
    "feature_size": 80,
    "num_mel_bins": 80,
    "padding_side": "right",
    "padding_value": 1,
    "sampling_rate": 16_000,
    "stride": 2,
}
MUQ = {**asdict(MuqConfig()), "w2v2_config": {}, "stat": {}}
SSLAM = asdict(EatConfig(model_variant="finetune"))
AS_ALARM = {"original_masks": True}

PUBLISHED = {
    "whisper": Published("whisper", "openai/whisper-large-v3", WHISPER, knobs=AS_ALARM),
    "w2vbert": Published("w2vbert", "facebook/w2v-bert-2.0", W2VBERT, W2VBERT_FEATURES, window="window_secs"),
    "muq": Published("muq", "OpenMuQ/MuQ-large-msd-iter", MUQ, window="chunk_secs", knobs=AS_ALARM),
    "sslam": Published("eat", "ta012/SSLAM_AS2M_Finetuned", SSLAM, first_tap=0, window="chunk_secs", knobs=AS_ALARM),
}


def prefix_of(name: str) -> str:
    """What stands before an encoder's tensors in a released ALARM model."""
    return f"model.audio_encoder.encoders.{name}.encoder."


def num_blocks(name: str, stored: Mapping[str, Tensor]) -> int | None:
    """Blocks of an encoder whose weights are among ``stored``; None: they are not."""
    block = re.compile(re.escape(prefix_of(name)) + r"(?:[a-z]+\.)*(?:layers|blocks)\.(\d+)\.")
    return max((int(found[1]) + 1 for found in map(block.match, stored) if found), default=None)


def place(name: str, stored: Mapping[str, Tensor], given: str | None, folder: Path | None) -> str:
    """Where an encoder is to be loaded from.

    Args:
        stored: the tensors of the released model.
        given: a folder or hub id from the user. Of a folder with a config and no weights, only the config is used.
        folder: where the encoders of the released model are written, each as a folder of its own; None: nowhere.

    Returns:
        ``given`` if it has weights; else the new folder, if the released model contains the encoder; else a hub id.
    """
    configs = local_folder(given) if given else None
    if given and (configs is None or not configs.is_dir() or any(configs.glob("*.safetensors"))):
        return given
    inside = isinstance(stored, StoredTensors) and any(tensor.startswith(prefix_of(name)) for tensor in stored)
    if folder is None or not inside:
        return given or PUBLISHED[name].source
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    stored.copy(prefix_of(name), target / WEIGHTS_FILE)
    published = PUBLISHED[name]
    named = {**published.config, "_name_or_path": published.source}
    for file, content in ((CONFIG_FILE, named), (EXTRACTOR_FILE, published.extractor)):
        if configs is not None and (configs / file).is_file():
            shutil.copyfile(configs / file, target / file)
        elif content is not None:
            (target / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return str(target)
