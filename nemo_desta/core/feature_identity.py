"""Opens the feature cache of a model: what identifies its encoders comes from the model's config.

The fingerprints are those that checkpoints hold, so a cache and a checkpoint agree about which encoder is which.
"""

from typing import Any

from nemo_desta.config import FeatureCacheConfig, ModelConfig
from nemo_desta.core.fingerprint import TOKENIZER_FILES, fingerprint
from nemo_desta.core.frozen import files_of, frozen_sources
from nemo_desta.errors import ConfigError
from nemo_desta.perception.feature_cache import FeatureCache
from nemo_desta.sources import local_folder

#: Settings of an encoder that `FeatureCache` takes from the encoder itself, or that a fingerprint replaces.
NOT_IDENTITY = ("path", "dtype", "layer_ids")


def open_feature_cache(settings: FeatureCacheConfig, config: ModelConfig) -> FeatureCache:
    """The cache for the encoders of a model.

    Raises:
        ConfigError: an encoder whose weights cannot be identified.
    """
    perception = config.perception
    audio = {"normalize_dbfs": perception.normalize_dbfs}
    names = perception.use or list(perception.encoders)
    sources = frozen_sources(config)
    identities = {name: _identity(name, config, sources.get(f"encoders.{name}")) for name in names}
    return FeatureCache(settings, identities, audio)


def _identity(name: str, config: ModelConfig, source: str | None) -> dict[str, Any]:
    folder = local_folder(source) if source else None
    if folder is None:
        raise ConfigError(
            f"feature_cache: the weights of encoder '{name}' have no 'path' on this machine, so its features could be "
            "mistaken for another's; give the encoder a path, or switch the cache off"
        )
    knobs = {key: value for key, value in config.perception.encoders[name].items() if key not in NOT_IDENTITY}
    files = fingerprint(folder, more=files_of(f"encoders.{name}", config)).items()
    hashes = sorted(value for file, value in files if file not in TOKENIZER_FILES)  # a weight file may be renamed
    return {"encoder": {"name": name, **knobs}, "hashes": hashes}
