"""The NeMo model: SALM's place in the NeMo stack, with fused perception, our own labels, loss and checkpoints.

SALM moves the embedding table out of the LLM, builds a NeMo ASR encoder and finds labels by comparing ids with pad;
none of that holds here, so its constructor, steps and generation are replaced (design decisions 1, 5, 8).
Letters: B rows, L text positions, A clips, S samples, W vectors per clip, D LLM width, Z spliced length.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from nemo.collections.speechlm2.models.salm import SALM
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import GenerationConfig

from nemo_desta.answering import chat
from nemo_desta.answering.audio_embeddings import AudioCache, Transcriber
from nemo_desta.answering.sampling import Sampling, resolve_sampling
from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.folder import open_model
from nemo_desta.core.loss import choose_cross_entropy, decoder_of, has_plain_head, summed_cross_entropy
from nemo_desta.core.splice import Spliced, splice
from nemo_desta.errors import ConfigError
from nemo_desta.models.base import DestaBase
from nemo_desta.models.fsdp import shard_llm
from nemo_desta.types import AUDIO_SLOT


class DestaModel(DestaBase, SALM):
    """A frozen LLM with ears. Only the projector (and LoRA, when asked for) learns.

    Args:
        cfg: NeMo's ``model`` section, as mapping, DictConfig or `ModelConfig`; unknown keys are refused.
    """

    def __init__(self, cfg: Mapping[str, Any] | DictConfig | ModelConfig) -> None:
        super(SALM, self).__init__()
        self.adopt(cfg)
        self.llm = build.build_llm(self.config.llm)
        _check_reads_embeddings(self.llm)
        self.perception = build.build_perception(
            self.config.perception, self.llm.config.get_text_config().hidden_size, build.embedding_rms(self.llm)
        )
        build.freeze_by_pattern(dict(self.trained_parameters()), self.config.freeze)
        self.cross_entropy = choose_cross_entropy(self.config.cross_entropy)
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if not parameter.requires_grad
        ]
        if self.config.activation_checkpointing:
            _enable_activation_checkpointing(self.llm)
        self.train()  # Lightning's fit leaves modes as it finds them; recomputation and LoRA's dropout need this one

    # ---- what the model is made of

    @property
    def embed_tokens(self) -> nn.Module:
        """The LLM's own embedding table; it stays inside the LLM."""
        return self.llm.get_input_embeddings()

    @property
    def text_bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    @property
    def audio_locator_tag_id(self) -> int:
        return AUDIO_SLOT

    def train(self, mode: bool = True) -> "DestaModel":
        """The frozen LLM stays in eval mode, unless LoRA trains or activations are recomputed (without dropout)."""
        super().train(mode)
        if self.config.llm.lora is None and not self.config.activation_checkpointing:
            self.llm.eval()
        return self

    # ---- forward

    def embed(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> Spliced:
        """A batch of the data layer as the LLM reads it."""
        ids = batch["input_ids"]
        text = self.embed_tokens(ids.clamp(min=0))
        if batch["audio_lens"].numel():
            vectors, lens = self.perceive(batch["audio"], batch["audio_lens"])
        else:
            vectors, lens = text.new_zeros(0, 0, text.shape[-1]), batch["audio_lens"]
        spliced = splice(
            text,
            ids,
            batch["input_lens"],
            batch["prompt_lens"],
            vectors=vectors,
            vector_lens=lens,
            padding_side=padding_side,
        )
        self.read_positions = (int(spliced.attention_mask.sum()), spliced.attention_mask.numel())
        return spliced

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
        """Summed cross-entropy of a batch's targets, how many there are, and how many the argmax gets right.

        A causal LLM's targets never see padding on their right: no mask is given then, which leaves attention its
        fastest kernels.
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
        """Whether logits are needed at supervised positions only; the LLM is asked once, before the first loss."""
        return has_plain_head(self.llm)

    # ---- training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss of one micro-batch; `on_before_optimizer_step` divides by the window's tokens."""
        loss, num_tokens, _ = self.loss(batch)
        if not batch["audio_lens"].numel():  # text only: keep every trained parameter in the graph (DDP)
            loss = loss + sum(p.sum() for _, p in self.trained_parameters() if p.requires_grad) * 0.0
        self.window.add(num_tokens, batch["row_ids"])
        self.step_losses = [(batch["row_ids"], loss.detach() / max(1, num_tokens))]
        self.log("loss", loss.detach() / max(1, num_tokens), prog_bar=True, batch_size=max(1, num_tokens))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.window.close(
            (p for _, p in self.trained_parameters()),
            averaged_over=self.trainer.accumulate_grad_batches * self.trainer.world_size,
            device=self.device,
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        LightningModule.backward(self, loss, *args, **kwargs)  # SALM's expects tensor-parallel logits

    def configure_model(self) -> None:
        """FSDP2 for the LLM when the strategy has a device mesh."""
        if self.device_mesh is not None:
            shard_llm(self.llm, self.device_mesh["data_parallel"])

    # ---- answers

    def generate(
        self,
        prompts: Any,
        audios: Any = None,
        audio_lens: Any = None,
        generation_config: Any = None,
        **generation: Any,
    ) -> Tensor:
        """New token ids (B, at most max_new_tokens) for a batch of conversations, padded after the end of turn.

        SALM's signature: ``audios`` (A, S) and ``audio_lens`` (A,) if the clips are loaded already. ``generation``:
        fields of `Sampling`, or ``do_sample``; the rest comes from ``generation_config``, by default the LLM's own.
        """
        sampling = resolve_sampling(generation_config or self.generation_config, **generation)
        return chat.write(self, chat.encode(self, prompts, audio=audios, audio_lens=audio_lens), sampling)

    def write(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> Tensor:
        return chat.write(self, batch, Sampling(max_new_tokens=max_new_tokens))

    def chat(self, messages: list[Any], **settings: Any) -> "chat.Answer | list[chat.Answer]":
        """Answer one conversation (list of messages) or a batch of them (list of lists); see `chat.stream`."""
        return chat.answer(self, messages, **settings)

    def stream(self, messages: list[Any], **settings: Any) -> "Iterator[chat.Delta]":
        """The same, piece by piece as it is written; see `chat.stream`."""
        return chat.stream(self, messages, **settings)

    @property
    def generation_config(self) -> GenerationConfig:
        """The LLM's own: how its authors want it to write."""
        return self.llm.generation_config

    @property
    def context_length(self) -> int | None:
        """Positions that the LLM was made for; None if its config does not say."""
        return getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def audio_cache(self) -> AudioCache:
        """Vectors of clips that were heard in chats."""
        return AudioCache()

    @cached_property
    def transcriber(self) -> Transcriber:
        """Whisper's decoder behind a voice activity detector, for ``transcript="whisper"``; loaded on first use."""
        return build.build_transcriber(self.config.perception, device=self.llm.device, dtype=self.llm.dtype)

    # ---- on disk

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        llm: str | None = None,
        encoders: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
        check_identity: bool = True,
        trust_remote_code: bool = False,
        allow_targets: Sequence[str] = (),
    ) -> "DestaModel":
        """Open a model folder or hub id.

        Args:
            llm: where the frozen LLM is on this machine, if not where the config says. encoders: likewise, by name.
            device: where to put the model; a GPU when there is one.
            check_identity: refuse frozen parts that are not those that the model was trained with.
            trust_remote_code: run Python files of the LLM's folder. allow_targets: dotted names in the model's config
            that may be imported and called, such as an encoder of your own. Without them nothing of the model is run.

        Raises:
            UntrustedConfig: the model's config asks for more than that.
            IdentityMismatch: such a part, by name. FileNotFoundError: no model folder, or a part that is not there.
        """
        config, tensors = open_model(
            str(pretrained_model_name_or_path),
            llm=llm,
            encoders=encoders,
            check_identity=check_identity,
            trust_remote_code=trust_remote_code,
            allow_targets=allow_targets,
        )
        model = cls(config)
        model.load_state_dict(tensors)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _check_reads_embeddings(llm: nn.Module) -> None:
    """Audio vectors reach an LLM as embeddings, so it must need nothing else of a position."""
    if width := getattr(llm.config.get_text_config(), "hidden_size_per_layer_input", None):
        raise ConfigError(
            f"{type(llm).__name__} looks token ids up in every layer (hidden_size_per_layer_input={width}); audio "
            "vectors have no ids, and text given as embeddings would be read differently. Use an LLM without"
        )


def _enable_activation_checkpointing(llm: nn.Module) -> None:
    for module in llm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
