"""The NeMo model: a subclass of SALM with `nemo_desta.core`'s embeddings and loss, and our own checkpoints.

SALM moves the embedding table out of the LLM, builds a NeMo ASR encoder and finds labels by comparing ids with pad. We
do none of these, so SALM's constructor, steps and generation are overridden (design decisions 1, 5, 8).
Letters: B rows, A clips, S samples.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import LightningModule
from nemo.collections.speechlm2.models.salm import SALM
from omegaconf import DictConfig
from torch import Tensor

from nemo_desta.answering import chat
from nemo_desta.answering.sampling import Sampling, resolve_sampling
from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.loss import choose_cross_entropy
from nemo_desta.core.model import SpeechLMMixin
from nemo_desta.core.splice import Spliced
from nemo_desta.models.base import DestaBase
from nemo_desta.models.fsdp import shard_llm
from nemo_desta.types import AUDIO_SLOT


class DestaModel(SpeechLMMixin, DestaBase, SALM):
    """A frozen LLM with audio input. Only the projector, and LoRA if configured, is trained.

    Args:
        cfg: NeMo's ``model`` section, as mapping, DictConfig or `ModelConfig`; unknown keys are refused.
    """

    def __init__(self, cfg: Mapping[str, Any] | DictConfig | ModelConfig) -> None:
        super(SALM, self).__init__()
        self.adopt(cfg)
        self.llm, self.perception = build.build_parts(self.config)
        build.freeze_by_pattern(dict(self.trained_parameters()), self.config.freeze)
        self.cross_entropy = choose_cross_entropy(self.config.cross_entropy)
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if not parameter.requires_grad
        ]
        if self.config.activation_checkpointing:
            build.recompute_activations(self.llm)
        self.train()  # Trainer.fit does not call it; recomputation and LoRA's dropout need train mode

    # ---- what the model is made of

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

    def embed(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> Spliced:
        """See `SpeechLMMixin.embed`; also counts tokens and padding for the throughput report."""
        spliced = super().embed(batch, padding_side=padding_side)
        self.read_positions = (int(spliced.attention_mask.sum()), spliced.attention_mask.numel())
        return spliced

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
        num_tokens = self.window.close(
            (p for _, p in self.trained_parameters()),
            averaged_over=self.trainer.accumulate_grad_batches * self.trainer.world_size,
            device=self.device,
        )
        self.log_step(num_tokens)

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
        fields of `Sampling`, or ``do_sample``; the others come from ``generation_config``, by default the LLM's own.
        """
        sampling = resolve_sampling(generation_config or self.generation_config, **generation)
        return chat.write(self, chat.encode(self, prompts, audio=audios, audio_lens=audio_lens), sampling)

    def write(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> Tensor:
        return chat.write(self, batch, Sampling(max_new_tokens=max_new_tokens))

    def chat(self, messages: list[Any], **settings: Any) -> "chat.Answer | list[chat.Answer]":
        """Answer one conversation (list of messages) or a batch of them (list of lists); see `chat.stream`."""
        return chat.answer(self, messages, **settings)

    def stream(self, messages: list[Any], **settings: Any) -> "Iterator[chat.Delta]":
        """The same as a stream of new text; see `chat.stream`."""
        return chat.stream(self, messages, **settings)
