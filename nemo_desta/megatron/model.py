"""The Lightning module whose LLM is split by megatron-core; encoders, rows, loss and checkpoints are DestaModel's.

Optimisation is manual: micro-batches are collected until the accumulation window is full; then all of them run through
megatron-core's schedule, followed by one optimiser step. Encoders and projector are on the first pipeline stage.
Letters: B rows, A clips, W vectors per clip, D LLM width, Z spliced length.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig

from nemo_desta.answering.decoder import eval_mode
from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.splice import place, splice
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.broadcast import from_first
from nemo_desta.megatron.gradients import clip_global_norm, copy_from_first, sum_gradients
from nemo_desta.megatron.llm import StageLLM, build_llm
from nemo_desta.megatron.shared_encoding import perceive_shared
from nemo_desta.megatron.step import run_losses, write_greedily
from nemo_desta.megatron.weights import embedding_rms
from nemo_desta.models.base import DestaBase
from nemo_desta.perception.encoders.base import as_dtype
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.sources import resolve_source


class MegatronDestaModel(DestaBase):
    """Encoders, projector and a frozen LLM that is split over GPUs as `MegatronStrategy` says.

    Args:
        cfg: NeMo's ``model`` section, as for DestaModel.
    """

    def __init__(self, cfg: Mapping[str, Any] | DictConfig | ModelConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.adopt(cfg)
        _refuse(self.config)
        self.llm: StageLLM | None = None
        self.perception: FusedPerception | None = None
        self._waiting: list[dict[str, Any]] = []  # micro-batches of the incomplete window

    def configure_model(self) -> None:
        """Build this rank's part. Lightning calls it after the strategy has set up megatron-core's groups."""
        if self.llm is not None:
            return
        config, strategy = self.config, self.trainer.strategy
        dtype = as_dtype(config.llm.dtype)
        self.llm = build_llm(config.llm.path, strategy.layout, dtype=dtype, recompute=config.activation_checkpointing)
        self.llm.config.calculate_per_token_loss = True  # our losses are sums: megatron-core must not average them
        if not self.llm.is_first:
            # An optimiser needs a parameter; with this one all ranks count the same steps and learning rates.
            self.clock = nn.Parameter(torch.zeros(1))
            return
        self.perception = build.build_perception(
            config.perception, self.llm.hidden_size, embedding_rms(config.llm.path)
        )
        build.freeze_by_pattern(dict(self.trained_parameters()), config.freeze)
        self.perception.projector.to(strategy.root_device)
        copy_from_first(self.perception.projector, parallel_state.get_tensor_and_data_parallel_group())

    @property
    def ranks_per_batch(self) -> int:
        return parallel_state.get_model_parallel_group().size()

    @property
    def writes_samples(self) -> bool:
        # ranks that share experts run the LLM together or not at all
        return parallel_state.get_data_parallel_rank() == 0 or self.llm.layout.expert_parallel_size > 1

    # ---- training

    def on_train_start(self) -> None:
        self._waiting = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect a micro-batch; with the last one of the window, run all of them and make a step."""
        places = place(batch["input_ids"], batch["input_lens"], batch["prompt_lens"], batch["vector_lens"])
        self.read_positions = (int(places.attention_mask.sum()), places.attention_mask.numel())
        self.window.add(places.target_ids.numel(), batch["row_ids"])
        self.step_losses = []
        self._waiting.append(batch)
        loop = self.trainer.fit_loop.epoch_loop
        is_full = loop.batch_progress.current.ready % self.trainer.strategy.accumulate_grad_batches == 0
        if is_full or loop._num_ready_batches_reached():  # as Lightning's own accumulation ends a window
            batches, self._waiting = self._waiting, []
            self._step(batches)

    def _step(self, batches: list[dict[str, Any]]) -> None:
        found = run_losses(self.llm, self.embed, batches, train=True)
        means = (found[:, 0] / found[:, 1].clamp(min=1)).float()
        self.step_losses = [(batch["row_ids"], mean) for batch, mean in zip(batches, means, strict=True)]

        totals = found[:, :2].sum(0)
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        total = int(totals[1])
        parameters = [parameter for _, parameter in self.trained_parameters()]
        if parameters:
            sum_gradients(parameters, parallel_state.get_tensor_and_data_parallel_group())
        self.window.normalise(parameters, total)
        self.log_step(total)
        clip_global_norm(parameters, self.trainer.strategy.gradient_clip_val)
        self.log("loss", (totals[0] / max(1, total)).float(), prog_bar=True, batch_size=max(1, total))

        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        self.window.clear()

    # ---- forward

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """Input (B, Z, D) of the LLM's first layer, the same on every tensor-parallel rank; first stage only."""
        text = self.llm.embed(batch["input_ids"].clamp(min=0))
        vectors = text.new_zeros(0, 0, text.shape[-1])
        if batch["audio_lens"].numel():
            vectors = perceive_shared(
                self.perceive,
                batch["audio"],
                batch["audio_lens"],
                batch["vector_lens"],
                output_size=text.shape[-1],
                dtype=self.llm.dtype,
                group=parallel_state.get_tensor_model_parallel_group(),
            )
        rows = (batch[name] for name in ("input_ids", "input_lens", "prompt_lens"))
        return splice(text, *rows, vectors=vectors, vector_lens=batch["vector_lens"]).inputs_embeds

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, int, Tensor]:
        """Summed cross-entropy of a batch, number of targets, correct argmax predictions; without gradient."""
        loss, num_tokens, num_correct = run_losses(self.llm, self.embed, [batch], train=False)[0]
        return loss, int(num_tokens), num_correct

    def write(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> Tensor:
        places = place(batch["input_ids"], batch["input_lens"], batch["prompt_lens"], batch["vector_lens"])
        with torch.no_grad(), eval_mode(self):
            embeds, row_lens = self.embed(batch) if self.llm.is_first else None, places.attention_mask.sum(1)
            if self.llm.layout.expert_parallel_size > 1:  # every copy of the LLM answers the first copy's rows
                copies = parallel_state.get_data_parallel_group()
                embeds, row_lens = (
                    embeds if embeds is None else from_first(embeds, copies),
                    from_first(row_lens, copies),
                )
            return write_greedily(
                self.llm,
                embeds,
                row_lens,
                max_new_tokens=max_new_tokens,
                end_ids=self._end_ids(),
                pad_id=self.text_pad_id,
            )

    def _end_ids(self) -> list[int]:
        source = resolve_source(self.config.llm.path)
        try:
            settings = GenerationConfig.from_pretrained(source)
        except OSError:  # an LLM folder may have no generation config
            settings = AutoConfig.from_pretrained(source, trust_remote_code=False)
        return self.prompts.end_ids(settings.eos_token_id)


def _refuse(config: ModelConfig) -> None:
    """Refuse settings that DestaModel has and this model does not.

    Raises:
        ConfigError: one of them is set.
    """
    if config.llm.lora is not None:
        raise ConfigError("model.llm.lora with strategy=megatron: the split LLM has no LoRA; use strategy=ddp")
    if config.llm.trust_remote_code:
        raise ConfigError("model.llm.trust_remote_code with strategy=megatron: only LLMs built in here can be split")
    if config.llm.attn_implementation is not None:
        raise ConfigError("model.llm.attn_implementation with strategy=megatron: attention is megatron-core's")
    if config.cross_entropy == "liger":
        raise ConfigError("model.cross_entropy=liger with strategy=megatron: the vocabulary is split; use auto")
