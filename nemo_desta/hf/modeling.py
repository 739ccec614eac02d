"""The model class of transformers over the parts that `SpeechLM` has: frozen LLM, encoders, projector, and its splice.

A folder that it writes is a model folder like any other: the projector, and references to the frozen parts.
Letters: B rows, L positions (an audio takes as many as it has vectors), A clips in reading order, S samples, D width.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from nemo_desta.config import ModelConfig, parse, to_dict
from nemo_desta.core import build
from nemo_desta.core.folder import check_trained_names, is_trained_name, open_model, save_folder
from nemo_desta.core.model import SpeechMixin
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.splice import put_vectors
from nemo_desta.errors import ConfigError
from nemo_desta.hf.configuration import DestaConfig
from nemo_desta.hf.generation import AudioGenerationMixin
from nemo_desta.hf.loading import model_folder
from nemo_desta.perception.fused import FusedPerception


class DestaForConditionalGeneration(SpeechMixin, PreTrainedModel, AudioGenerationMixin):
    """A frozen LLM with audio input; only the projector has gradients.

    Args:
        config: of the model. llm, perception, prompts: ready parts; built from the config if they are not given. The
            LLM is frozen, except for LoRA.
    """

    config_class = DestaConfig
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    # Attention and caches are the LLM's own.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        config: DestaConfig,
        llm: PreTrainedModel | None = None,
        perception: FusedPerception | None = None,
        prompts: PromptBuilder | None = None,
    ) -> None:
        if llm is None or perception is None or prompts is None:
            settings = config.settings()
            llm, perception = build.build_parts(settings)
            prompts = build.build_prompts(build.build_tokenizer(settings.llm), settings.prompt)
        config.text_config = llm.config
        config._attn_implementation = llm.config._attn_implementation
        super().__init__(config)
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_(is_trained_name(name) and parameter.requires_grad)
        self.llm = llm
        self.perception = perception
        self.prompts = prompts
        self.generation_config = copy.deepcopy(llm.generation_config)
        self.generation_config.eos_token_id = prompts.end_ids(llm.generation_config.eos_token_id)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = self.text_pad_id
        self._is_stateful = getattr(llm, "_is_stateful", False)
        self._recomputes = False
        self.post_init()
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        llm: str | None = None,
        encoders: Mapping[str, str] | None = None,
        check_identity: bool = True,
        trust_remote_code: bool | None = False,
        allow_targets: Sequence[str] = (),
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
        quantization_config: Any = None,
        **options: Any,
    ) -> "DestaForConditionalGeneration":
        """Open a model folder or hub id, in eval mode; on the CPU unless ``device_map`` says otherwise.

        Args:
            config: read from the folder if it is not given.
            llm, encoders, check_identity, trust_remote_code, allow_targets: as of `SpeechLM.from_pretrained`.
            dtype, attn_implementation: of the LLM; "auto" and None: as the folder says. torch_dtype: dtype's old name.
            device_map, max_memory, offload_folder, quantization_config: of the LLM; encoders and projector go to where
                its embeddings are, which must stay on a device.
            options: revision, token, cache_dir and others of the hub.

        Raises:
            UntrustedConfig: the folder's config asks for more than was granted.
            IdentityMismatch: a frozen part that is another one; the message names it.
            FileNotFoundError: no model folder, or a part that is not there. TypeError: an unknown argument.
        """
        folder = model_folder(pretrained_model_name_or_path, options)
        settings, tensors = open_model(
            str(folder),
            llm=llm or getattr(config, "llm", None),
            encoders=encoders,
            check_identity=check_identity,
            trust_remote_code=bool(trust_remote_code),
            allow_targets=allow_targets,
        )
        # Auto classes give the config what it has as an attribute, and call this method without it.
        asked = (dtype, torch_dtype, getattr(config, "dtype", None))
        if (dtype := next((one for one in asked if one is not None), None)) not in (None, "auto"):
            settings = replace(settings, llm=replace(settings.llm, dtype=str(dtype).removeprefix("torch.")))
        if attn_implementation := attn_implementation or getattr(config, "_attn_implementation", None):
            settings = replace(settings, llm=replace(settings.llm, attn_implementation=attn_implementation))
        given = {
            "device_map": device_map,
            "max_memory": max_memory,
            "offload_folder": offload_folder,
            "quantization_config": quantization_config,
        }
        parts = build.build_parts(settings, **{name: value for name, value in given.items() if value is not None})
        prompts = build.build_prompts(build.build_tokenizer(settings.llm), settings.prompt)
        config = (
            copy.deepcopy(config) if isinstance(config, cls.config_class) else cls.config_class.from_pretrained(folder)
        )
        config.model = to_dict(settings)
        model = cls(config, *parts, prompts)
        check_trained_names(filter(is_trained_name, model.state_dict()), tensors)
        model.load_state_dict(tensors, strict=False)
        model.perception.to(model.get_input_embeddings().weight.device)
        # Not is_quantized: transformers' trainer would refuse to train the projector.
        for name in ("hf_device_map", "hf_quantizer", "quantization_method"):
            if hasattr(model.llm, name):
                setattr(model, name, getattr(model.llm, name))
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> Path:
        """Write a model folder: trained tensors, config, tokenizer and the frozen parts' fingerprints.

        ``is_main_process``: False writes nothing. ``state_dict``: the tensors to write instead of the model's own.
        Other arguments of transformers' method, such as the size of shards, have no meaning here.

        Raises:
            ConfigError: ``push_to_hub``, or adapters that were added after loading.
        """
        if push_to_hub:
            raise ConfigError("save_pretrained writes a folder; `desta export ... push=true` uploads one with a card")
        settings = parse(ModelConfig, self.config.model)
        tensors = {n: t for n, t in (state_dict or self.state_dict()).items() if is_trained_name(n)}
        if settings.llm.lora is None and (added := next((name for name in tensors if ".lora_" in name), None)):
            raise ConfigError(f"'{added}' is of an adapter that this model's config does not have; save it with PEFT")
        if not is_main_process:
            return Path(save_directory)
        return save_folder(save_directory, settings, tensors, self.tokenizer)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio: Tensor | None = None,
        audio_lens: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """The LLM's own output for ids with audio tokens.

        Args:
            input_ids: (B, L), as the processor returns them. inputs_embeds: (B, L, D) instead, of `embed_audio`.
            attention_mask: (B, past + L), 1 = valid; padding may be on either side.
            audio: (A, S) float32 at the model's rate, (A, S, K) for several, as the processor gives it.
            audio_lens: (A,) samples of each clip.
            labels: (B, L), -100 = not supervised, as audio and padding must be; shifted by the LLM.
            kwargs: further arguments of the LLM.

        Raises:
            ValueError: ids and embeddings, or neither; audio tokens and vectors that differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, not both")
        if inputs_embeds is None:
            inputs_embeds = self.embed_audio(input_ids, audio, audio_lens)
        elif audio is not None:
            raise ValueError("inputs_embeds hold the audio already; give audio together with input_ids")
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            # Counted from the first valid position, so that padding on the left changes nothing.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        if "logits_to_keep" in inspect.signature(self.llm.forward).parameters:
            kwargs["logits_to_keep"] = logits_to_keep
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    def embed_audio(self, input_ids: Tensor, audio: Tensor | None = None, audio_lens: Tensor | None = None) -> Tensor:
        """(B, L) ids, (A, S), (A,) -> (B, L, D): text embeddings with each clip's vectors at its audio tokens.

        Raises:
            ValueError: audio tokens and vectors that differ in number, or audio tokens apart that belong together;
                ``audio`` and ``audio_lens`` that do not fit, as where a pipeline's ``batch_size`` pads on the left.
        """
        num_clips, num_lens = (0 if given is None else len(given) for given in (audio, audio_lens))
        if num_clips != num_lens:
            raise ValueError(f"{num_clips} clips in audio but {num_lens} in audio_lens, the samples of each clip")
        held = input_ids == self.config.audio_token_index
        text = self.get_input_embeddings()(input_ids.masked_fill(held, 0))
        places = held.flatten().nonzero()[:, 0]
        if not num_clips:
            if places.numel():
                raise ValueError(f"{places.numel()} audio tokens in input_ids but no audio")
            return text
        behind = torch.arange(audio.shape[1], device=audio.device) >= audio_lens.to(audio.device)[:, None]
        if bool((audio.ne(0) & behind.view(*behind.shape, *[1] * (audio.dim() - 2))).any()):
            raise ValueError(
                "audio has samples behind the length of a clip. Clips are padded with zeros on the right: make "
                "batches with the processor, not with a pipeline's batch_size"
            )
        vectors, lens = self.perceive(audio, audio_lens)
        ends = lens.to(places.device).cumsum(0)
        if places.numel() != int(ends[-1]):
            raise ValueError(f"{places.numel()} audio tokens in input_ids, but the clips have {lens.tolist()} vectors")
        starts = places[ends - lens.to(places.device)]
        if not torch.equal(places[ends - 1] - starts, lens.to(places.device) - 1):
            raise ValueError("the audio tokens of a clip must stand side by side")
        return put_vectors(text.flatten(0, 1), starts, vectors.to(text.device), lens).view_as(text)

    def train(self, mode: bool = True) -> "DestaForConditionalGeneration":
        """The frozen LLM stays in eval mode, unless LoRA trains or activations are recomputed (without dropout)."""
        super().train(mode)
        if not self._recomputes and not any(p.requires_grad for p in self.llm.parameters()):
            self.llm.eval()
        return self

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Recompute the LLM's activations in backward; the encoders have none to keep."""
        build.recompute_activations(self.llm)
        self._recomputes = True
        self.train(self.training)

    def gradient_checkpointing_disable(self) -> None:
        self.llm.gradient_checkpointing_disable()
        self._recomputes = False
        self.train(self.training)

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Module:
        """Not supported, and neither are other embeddings or another head.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the LLM is frozen and keeps its vocabulary, embeddings and head. Audio needs no new row: its vectors "
            "take the positions of the audio tokens"
        )

    set_input_embeddings = set_output_embeddings = resize_token_embeddings

    def init_weights(self) -> None:
        """Nothing: the parts come with their weights, which transformers would initialise again."""

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Nothing: the LLM has tied its own."""

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.llm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.llm.get_decoder()
