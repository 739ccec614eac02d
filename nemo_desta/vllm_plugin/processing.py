"""vLLM's view of clips: samples at the model's rate, and as many positions as a clip has vectors.

No weights are loaded here: this runs in the API server. Letters: S samples of one clip, K rates.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from nemo_desta.answering.clips import Clip, load_clip
from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError
from nemo_desta.hf.processing import DestaProcessor
from nemo_desta.types import Rates, first_rate
from nemo_desta.vllm_plugin.served import served_processor

#: The longest clip, even where the context has room for a longer one: vLLM reserves memory for a clip of this length.
MAX_CLIP_SECS = 1_800


class ReadClip(np.ndarray):
    """Samples (S,) or (S, K) of `load_clip`. vLLM parses some clips a second time, and (S, K) is not stereo."""


class ClipParser(MultiModalDataParser):
    """Clips by the rules of `load_clip`: levels, channels and resampling are the same as in chat and training."""

    def __init__(self, rates: Rates, longest_clip: int) -> None:
        super().__init__(target_sr=first_rate(rates))
        self.rates = rates
        self.longest_clip = longest_clip

    @classmethod
    def is_embeddings(cls, data: object) -> bool:
        """Never: vectors made elsewhere are refused."""
        return False

    def _get_audio_with_sr(self, audio: Any) -> tuple[np.ndarray, None]:
        if isinstance(audio, ReadClip):
            return audio, None
        if not isinstance(audio, Clip):  # the decoder's are loaded
            array, rate = super()._get_audio_with_sr(audio)
            audio = {"array": array, "sampling_rate": rate}
        try:
            clip = load_clip(audio, self.rates).audio
        except (AudioError, TypeError) as error:
            raise VLLMValidationError(str(error), parameter="audio") from error
        if len(clip) > self.longest_clip:
            secs, limit = (count / first_rate(self.rates) for count in (len(clip), self.longest_clip))
            raise VLLMValidationError(f"the clip has {secs:.1f} s, the limit is {limit:.1f} s", parameter="audio")
        return clip.view(ReadClip), None


class DestaProcessingInfo(BaseProcessingInfo):
    """Facts about the served model."""

    @cached_property
    def processor(self) -> DestaProcessor:
        return served_processor(self.ctx.model_config)

    def get_hf_processor(self, **_: object) -> DestaProcessor:
        return self.processor

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {"text_kwargs": set(), "audio_kwargs": set()}

    def get_default_tok_params(self) -> Any:
        """Prompts as text already hold the special tokens."""
        return super().get_default_tok_params().with_kwargs(add_special_tokens=False)

    def get_data_parser(self) -> ClipParser:
        return ClipParser(self.processor.audio_rates, self.longest_clip)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    @cached_property
    def longest_clip(self) -> int:
        """Samples of the longest clip: what ``max_model_len`` has room for, `MAX_CLIP_SECS` or the user's own limit
        (``--limit-mm-per-prompt '{"audio": {"count": 4, "length": 480000}}'``).

        Raises:
            ConfigError: there is no room for any clip.
        """
        limit = MAX_CLIP_SECS * self.processor.sampling_rate
        given = self.ctx.get_mm_config().limit_per_prompt.get("audio")
        limit = min(limit, getattr(given, "length", None) or limit)
        room = self.ctx.model_config.max_model_len - 1
        count = self.processor.num_audio_tokens
        if found := bisect_right(range(1, limit + 1), room, key=count):
            return found
        raise ConfigError(f"max_model_len={room + 1} has no room for a clip: the shortest one has {count(1)} vectors")

    @cached_property
    def held_id(self) -> int:
        """The id at a clip's positions: the audio token's, or one that is never generated if the LLM has no such row,
        since vLLM looks prompt ids up in logits (``prompt_logprobs``)."""
        num_rows = self.get_hf_config().text_config.vocab_size
        if (token := self.processor.audio_token_id) < num_rows:
            return token
        pad = self.processor.tokenizer.pad_token_id
        return num_rows - 1 if pad is None or pad in self.processor.prompts.end_ids() else pad

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"audio": self.processor.num_audio_tokens(self.longest_clip)}


class DestaDummyInputs(BaseDummyInputsBuilder[DestaProcessingInfo]):
    """The longest clips, for vLLM's memory measurement at the start."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.processor.audio_token * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        return {"audio": [np.zeros(self.info.longest_clip, np.float32)] * mm_counts.get("audio", 0)}


class DestaMultiModalProcessor(BaseMultiModalProcessor[DestaProcessingInfo]):
    """Hands samples to the model as they are; each audio token becomes as many positions as the clip has vectors."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        return BatchFeature(
            {"audio": [torch.from_numpy(clip) for clip in hf_data["audio"]]}
        )  # (S,) or (S, K) float32 each

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"audio": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        processor = self.info.processor
        token = processor.audio_token_id

        def expanded(number: int) -> list[int]:
            clips = mm_items.get_items("audio", AudioProcessorItems)
            return [self.info.held_id] * processor.num_audio_tokens(clips.get_audio_length(number))

        return [PromptReplacement(modality="audio", target=[token], replacement=expanded)]
