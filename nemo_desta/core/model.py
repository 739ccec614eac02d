"""The model without a trainer: a frozen LLM, perception and prompts as one nn.Module of torch and transformers.

`SpeechLM` is that module. Its parts are mixins, so that the models of trainers and of engines share one definition:
each holds ``llm``, ``perception`` and ``prompts`` under these names, which are also the names of the state dict.
Letters: B rows, L text positions, A clips, S samples, W vectors per clip, D LLM width, Z spliced length.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.audio_cache import AudioCache
from nemo_desta.core.folder import check_trained_names, is_trained_name, open_model
from nemo_desta.core.loss import choose_cross_entropy, decoder_of, has_plain_head, summed_cross_entropy
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.splice import Spliced, splice
from nemo_desta.errors import ConfigError
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.types import Rates, first_rate

Model = TypeVar("Model", bound="ChatMixin")


class SpeechMixin:
    """Prompts and perception. ``llm`` gives the dtype of the vectors."""

    llm: nn.Module
    perception: FusedPerception
    prompts: PromptBuilder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.prompts.tokenizer

    @property
    def audio_locator_tag(self) -> str:
        return self.prompts.audio_locator_tag

    @property
    def text_eos_id(self) -> int:
        return self.prompts.end_of_turn_id

    @property
    def text_pad_id(self) -> int:
        """An id for padding of ids; masks never depend on it."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.text_eos_id

    @property
    def audio_rates(self) -> Rates:
        """The rates at which `load_clip` and datasets give audio to this model."""
        return self.perception.audio_rates

    @property
    def sampling_rate(self) -> int:
        """The rate at which lengths of clips count, and that of arrays without one."""
        return first_rate(self.audio_rates)

    def num_audio_tokens(self, num_samples: int) -> int:
        """Vectors that a clip of ``num_samples`` at ``sampling_rate`` becomes."""
        return self.perception.num_tokens(num_samples)

    def perceive(
        self, audio: Tensor, audio_lens: Tensor, audio_keys: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(A, S) or (A, S, K) float32, (A,) -> vectors (A, W, D), lens (A,); autocast to a 16-bit LLM's dtype.

        ``audio_keys``: (A,) `clip_key` of each clip, for a feature cache; computed where it is needed if None.
        """
        dtype = self.llm.dtype
        with torch.autocast(audio.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            return self.perception(audio, audio_lens, audio_keys=audio_keys)


class ChatMixin(SpeechMixin):
    """What `nemo_desta.answering` reads of a model, and how a model folder is opened."""

    config: ModelConfig | None = None

    @property
    def embed_tokens(self) -> nn.Module:
        """The LLM's own embedding table; it stays inside the LLM."""
        return self.llm.get_input_embeddings()

    @property
    def generation_config(self) -> GenerationConfig:
        """The LLM's own, with its authors' recommendations for sampling."""
        return self.llm.generation_config

    @property
    def context_length(self) -> int | None:
        """Positions that the LLM was made for; None if its config does not say."""
        return getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def audio_cache(self) -> AudioCache:
        """Vectors of clips that were encoded in chats."""
        return AudioCache()

    @cached_property
    def transcriber(self) -> Callable[[Sequence[Any]], Sequence[str]]:
        """Whisper's decoder behind a voice activity detector, for ``transcript="whisper"``; loaded on first use.

        Raises:
            ConfigError: a model of ready parts does not know where Whisper's decoder is.
        """
        if self.config is None:
            raise ConfigError("this model was built from ready parts and has no Whisper decoder: pass transcriber=")
        return build.build_transcriber(self.config.perception, device=self.llm.device, dtype=self.llm.dtype)

    @classmethod
    def from_config(cls: type[Model], config: ModelConfig) -> Model:
        """Build all parts; the projector has its initial weights."""
        return cls(config)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        llm: str | None = None,
        encoders: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
        check_identity: bool = True,
        trust_remote_code: bool = False,
        allow_targets: Sequence[str] = (),
    ) -> Model:
        """Open a model folder or hub id, in eval mode.

        Args:
            llm: where the frozen LLM is on this machine, if not where the config says. encoders: likewise, by name.
            device: where to put the model; a GPU when there is one.
            check_identity: refuse frozen parts that are not those that the model was trained with.
            trust_remote_code: run Python files of the LLM's folder. allow_targets: dotted names in the model's config
                that may be imported and called, such as an encoder of your own. By default no code of the model runs.

        Raises:
            UntrustedConfig: the model's config asks for more than that.
            IdentityMismatch: a frozen part that is another one; the message names it.
            FileNotFoundError: no model folder, or a part that is not there.
        """
        config, tensors = open_model(
            str(pretrained_model_name_or_path),
            llm=llm,
            encoders=encoders,
            check_identity=check_identity,
            trust_remote_code=trust_remote_code,
            allow_targets=allow_targets,
        )
        model = cls.from_config(config)
        check_trained_names(filter(is_trained_name, model.state_dict()), tensors)
        model.load_state_dict(tensors, strict=False)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


class SpeechLMMixin(ChatMixin):
    """Forward pass and loss of a whole LLM. ``cross_entropy``: the implementation, see `choose_cross_entropy`."""

    llm: PreTrainedModel
    cross_entropy: str

    def embed(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> Spliced:
        """The LLM's input for a batch of the data layer: text embeddings with the audio vectors in their slots.

        batch: ``input_ids`` (B, L), ``input_lens`` (B,), ``prompt_lens`` (B,), ``audio`` (A, S), ``audio_lens`` (A,),
        and for a feature cache ``audio_keys`` (A,).
        """
        ids = batch["input_ids"]
        text = self.embed_tokens(ids.clamp(min=0))
        if batch["audio_lens"].numel():
            vectors, lens = self.perceive(batch["audio"], batch["audio_lens"], batch.get("audio_keys"))
        else:
            vectors, lens = text.new_zeros(0, 0, text.shape[-1]), batch["audio_lens"]
        return splice(
            text,
            ids,
            batch["input_lens"],
            batch["prompt_lens"],
            vectors=vectors,
            vector_lens=lens,
            padding_side=padding_side,
        )

    def forward(self, input_embeds: Tensor, attention_mask: Tensor | None = None, cache: Any = None) -> dict[str, Any]:
        """(B, Z, D) -> {"logits": (B, Z, V)}: the bare LLM on embeddings, bit for bit."""
        out = self.llm(
            inputs_embeds=input_embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return {"logits": out.logits} if cache is None else {"logits": out.logits, "cache": out.past_key_values}

    def loss(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> tuple[Tensor, int, Tensor]:
        """Summed cross-entropy of a batch's targets, the number of targets, and how many the argmax gets right.

        With padding on the right no mask is passed: a causal LLM's targets never attend to it, and attention without
        a mask uses its fastest kernels.
        """
        inputs = self.embed(batch, padding_side=padding_side)
        kwargs: dict[str, Any] = {"inputs_embeds": inputs.inputs_embeds, "use_cache": False}
        if padding_side == "left":
            kwargs |= {"attention_mask": inputs.attention_mask.long(), "position_ids": inputs.position_ids}
        before = inputs.target_positions - 1
        if self.plain_head:
            hidden = decoder_of(self.llm)(**kwargs).last_hidden_state[inputs.target_rows, before]
            head, implementation = self.llm.get_output_embeddings(), self.cross_entropy
        else:
            hidden = self.llm(**kwargs).logits[inputs.target_rows, before]
            head, implementation = nn.Identity(), "torch"
        loss, num_correct = summed_cross_entropy(hidden, head, inputs.target_ids, implementation=implementation)
        return loss, inputs.target_ids.numel(), num_correct

    @cached_property
    def plain_head(self) -> bool:
        """Whether logits can be computed at supervised positions only; the LLM is probed once, before the first
        loss."""
        return has_plain_head(self.llm)


class SpeechLM(SpeechLMMixin, nn.Module):
    """A frozen LLM with audio input; only the projector learns.

    Args:
        llm: a causal LLM of transformers; it is frozen and stays in eval mode.
        perception: encoders and projector. The projector's output has the width of the LLM's embeddings.
        prompts: the LLM's tokenizer and chat template.
        cross_entropy: "auto", "liger" or "torch".

    >>> from nemo_desta.answering.chat import answer
    >>> from nemo_desta.testing.models import tiny_speech_lm
    >>> model = tiny_speech_lm()  # SpeechLM(llm, FusedPerception(encoders, projector), PromptBuilder(tokenizer))
    >>> clip = {"audio": torch.zeros(16_000).numpy(), "sampling_rate": 16_000}
    >>> text = answer(model, [{"role": "user", "content": "What is it?", "audios": [clip]}], max_new_tokens=4)

    Raises:
        ConfigError: an LLM that needs token ids at every layer, or a projector of another width.
    """

    def __init__(
        self, llm: PreTrainedModel, perception: FusedPerception, prompts: PromptBuilder, *, cross_entropy: str = "auto"
    ) -> None:
        super().__init__()
        build.check_reads_embeddings(llm)
        width = llm.config.get_text_config().hidden_size
        if (found := perception.projector.output_size) != width:
            raise ConfigError(f"the projector's output_size is {found}, the embeddings of the LLM are {width} wide")
        self.llm = llm.requires_grad_(False)
        self.perception = perception
        self.prompts = prompts
        self.cross_entropy = choose_cross_entropy(cross_entropy)
        self.train()

    @classmethod
    def from_config(cls, config: ModelConfig) -> "SpeechLM":
        """Build all parts; the projector has its initial weights. Settings of training are for trainers to apply."""
        prompts = build.build_prompts(build.build_tokenizer(config.llm), config.prompt)
        llm, perception = build.build_parts(config)
        model = cls(llm, perception, prompts, cross_entropy=config.cross_entropy)
        model.config = config
        return model

    def train(self, mode: bool = True) -> "SpeechLM":
        """Train or eval mode of the projector; the LLM stays in eval mode."""
        super().train(mode)
        self.llm.eval()
        return self
