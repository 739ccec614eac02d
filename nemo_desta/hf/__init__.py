"""The model in transformers: config, processor and model class, registered with the auto classes on import.

>>> import nemo_desta.hf
>>> from transformers import AutoModel, AutoProcessor
>>> # AutoModel.from_pretrained("my_model"), AutoProcessor.from_pretrained("my_model")

This room needs torch and transformers only: no trainer (docs/transformers.md).
"""

import transformers
from transformers import AutoConfig, AutoProcessor

from nemo_desta.core.folder import AUTO_MODELS
from nemo_desta.core.tokenizers import MODEL_TYPE
from nemo_desta.hf.configuration import DestaConfig
from nemo_desta.hf.modeling import DestaForConditionalGeneration
from nemo_desta.hf.processing import DestaProcessor

__all__ = ["DestaConfig", "DestaForConditionalGeneration", "DestaProcessor"]

AutoConfig.register(MODEL_TYPE, DestaConfig, exist_ok=True)
AutoProcessor.register(DestaConfig, DestaProcessor, exist_ok=True)
for _name in AUTO_MODELS:
    if (_auto := getattr(transformers, _name, None)) is not None:  # transformers 4 lacks the newer ones
        _auto.register(DestaConfig, DestaForConditionalGeneration, exist_ok=True)
