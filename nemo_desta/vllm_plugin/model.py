"""vLLM's class of a model folder: vLLM's own class of the LLM, and this package's encoders and projector.

The LLM's weights are read from the LLM's folder. Every rank of tensor parallelism runs all of perception.
Letters: A clips, S samples, W vectors of one clip, D width of the LLM, N tokens of a batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.torch_utils import set_default_torch_dtype

from nemo_desta.answering.audio_embeddings import grouped_clips, room_for_clips
from nemo_desta.config import ModelConfig
from nemo_desta.core.build import build_perception
from nemo_desta.core.folder import PROJECTOR_PREFIX, WEIGHTS_FILE, check_trained_names
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.sources import resolve_source
from nemo_desta.vllm_plugin.processing import DestaDummyInputs, DestaMultiModalProcessor, DestaProcessingInfo
from nemo_desta.vllm_plugin.served import served_parts

LLM_PREFIX = "language_model."


@MULTIMODAL_REGISTRY.register_processor(
    DestaMultiModalProcessor, info=DestaProcessingInfo, dummy_inputs=DestaDummyInputs
)
class DestaForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """A frozen LLM with audio input.

    Raises:
        IdentityMismatch: a frozen part is not the one of the training (``check_identity`` of ``--hf-overrides``).
    """

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    #: Names in the LLM's own checkpoint, LoRA and quantisation -> names here.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.": f"{LLM_PREFIX}model.", "lm_head.": f"{LLM_PREFIX}lm_head."}
    )
    allow_patterns_overrides = [WEIGHTS_FILE]

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        """A text for vLLM's own bookkeeping; `DestaRenderer` places the model's tag."""
        return "<|AUDIO|>"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.config = config = model_config.hf_config
        self.dtype = model_config.dtype
        settings, tensors = served_parts(model_config)
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.audio_token_index])
        with self._mark_tower_model(vllm_config, "audio"):
            self.perception = _trained_perception(settings, tensors, config.text_config.hidden_size)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.packed_modules_mapping = getattr(self.language_model, "packed_modules_mapping", {})
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        source = resolve_source(settings.llm.path)
        self.secondary_weights = [DefaultModelLoader.Source(source, revision=None, prefix=LLM_PREFIX)]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the LLM's; perception has its own since it was built. Returns the names of all."""
        own = ((name, tensor) for name, tensor in weights if name.startswith(LLM_PREFIX))
        loaded = AutoWeightsLoader(self).load_weights(own)
        return loaded | {name for name in self.state_dict() if name.startswith("perception.")}

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="perception.projector", tower_model="perception.encoders"
        )

    @torch.no_grad()
    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """``audio``: A clips (S,) or (S, K) float32, or one tensor of all -> A vectors (W, D) in the LLM's dtype."""
        rates = self.perception.audio_rates
        inner = () if isinstance(rates, int) else (len(rates),)
        clips = [clip.reshape(-1, *inner) for clip in kwargs.get("audio", ())]
        lens = [len(clip) for clip in clips]
        vectors: list[Any] = [None] * len(clips)
        for group in grouped_clips(lens, room_for_clips(self.perception.sampling_rate, self._device.type)):
            audio = pad_sequence([clips[i].float() for i in group], batch_first=True).to(self._device)
            num_samples = torch.tensor([lens[i] for i in group], device=self._device)
            low = self.dtype in (torch.bfloat16, torch.float16)
            with torch.autocast(self._device.type, dtype=self.dtype if low else torch.bfloat16, enabled=low):
                found, num_vectors = self.perception(audio, num_samples)
            for i, row, count in zip(group, found, num_vectors.tolist(), strict=True):
                vectors[i] = row[:count].to(self.dtype)
        return vectors

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """ids (N,) or embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    @property
    def _device(self) -> torch.device:
        return next(self.perception.parameters()).device


def _trained_perception(settings: ModelConfig, tensors: dict[str, Tensor], width: int) -> FusedPerception:
    """Encoders and trained projector on vLLM's device. They keep the dtypes of the model's config, whatever the dtype
    of the LLM is."""
    device = torch.get_default_device()
    with torch.device("cpu"), set_default_torch_dtype(torch.float32):
        perception = build_perception(settings.perception, width, 1.0)
    own = {name.removeprefix(PROJECTOR_PREFIX): t for name, t in tensors.items() if name.startswith(PROJECTOR_PREFIX)}
    check_trained_names(perception.projector.state_dict(), own)
    perception.projector.load_state_dict(own)
    return perception.requires_grad_(False).eval().to(device)
