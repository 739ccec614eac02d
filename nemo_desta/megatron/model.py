"""The Lightning module whose LLM is split by megatron-core; encoders, rows, loss and checkpoints are DestaModel's.

Optimisation is manual: micro-batches are collected until the accumulation window is full; then all of them run through
megatron-core's schedule, followed by one optimiser step. Encoders and projector are on the first pipeline stage.
Letters: B rows, A clips, W vectors per clip, D LLM width, Z spliced length.
"""

from collections.abc import Mapping
from pathlib import Path
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
from nemo_desta.core.folder import save_folder
from nemo_desta.core.splice import place, splice
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.broadcast import from_first
from nemo_desta.megatron.generation import write_greedily
from nemo_desta.megatron.gradients import clip_gradients, copy_from_first, norm_over, sum_gradients
from nemo_desta.megatron.llm import StageLLM, build_llm
from nemo_desta.megatron.lora import SplitLora
from nemo_desta.megatron.shared_encoding import perceive_shared
from nemo_desta.megatron.stages import all_names, join_tensors
from nemo_desta.megatron.step import run_losses
from nemo_desta.megatron.weights import embedding_rms
from nemo_desta.models.base import DestaBase
from nemo_desta.ops.dtypes import as_dtype
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
        self.lora: SplitLora | None = None
        self._trained: dict[str, Tensor] = {}  # of all stages, at the end of the training

    def configure_model(self) -> None:
        """Build this rank's part. Lightning calls it after the strategy has set up megatron-core's groups."""
        if self.llm is not None:
            return
        config, strategy = self.config, self.trainer.strategy
        dtype = as_dtype(config.llm.dtype)
        self.llm = build_llm(config.llm.path, strategy.layout, dtype=dtype, recompute=config.activation_checkpointing)
        self.llm.config.calculate_per_token_loss = True  # our losses are sums: megatron-core must not average them
        trained: list[nn.Module] = []
        if (lora := config.llm.lora) is not None:
            self.lora = SplitLora(self.llm, lora, dropout=0.0 if config.activation_checkpointing else lora.dropout)
            trained += self.lora.linears
        if self.llm.is_first:
            rms = embedding_rms(config.llm.path) * self.llm.embedding_scale
            self.perception = build.build_perception(config.perception, self.llm.hidden_size, rms)
            trained.append(self.perception.projector)
        else:
            # An optimiser needs a parameter; with this one all ranks count the same steps and learning rates.
            self.clock = nn.Parameter(torch.zeros(1))
        for module in trained:
            copy_from_first(module.to(strategy.root_device), _stage_copies())
        own = dict(self.trained_parameters())
        elsewhere = nn.Parameter(torch.empty(0))  # a pattern may match parameters of other stages only
        build.freeze_by_pattern({name: own.get(name, elsewhere) for name in all_names(own)}, config.freeze)

    @property
    def ranks_per_batch(self) -> int:
        return self.trainer.strategy.layout.ranks_per_copy

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
        if self.lora is not None:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self.lora.seed(
                (self.trainer.strategy.seed, done, parallel_state.get_data_parallel_rank(with_context_parallel=True)),
                self.device,
            )
        found = run_losses(self.llm, self.embed, batches, train=True)
        means = (found[:, 0] / found[:, 1].clamp(min=1)).float()
        self.step_losses = [(batch["row_ids"], mean) for batch, mean in zip(batches, means, strict=True)]

        totals = found[:, :2].sum(0)
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        total = int(totals[1])
        parameters = [parameter for _, parameter in self.trained_parameters()]
        if parameters:
            sum_gradients(parameters, _stage_copies())
        self.window.normalise(parameters, total)
        norm = self.log_step(total)
        clip_gradients(parameters, self.trainer.strategy.gradient_clip_val, norm=norm)
        self.log("loss", (totals[0] / max(1, total)).float(), prog_bar=True, batch_size=max(1, total))

        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        self.window.clear()

    def gradient_norm(self) -> Tensor | None:
        return norm_over(super().gradient_norm(), parallel_state.get_pipeline_model_parallel_group(), self.device)

    def on_train_end(self) -> None:
        self._trained = join_tensors(self.state_dict())  # when `save_pretrained` is called, the groups are gone

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> Path:
        return save_folder(save_directory, self.config, self._trained or self.state_dict(), self.tokenizer)

    # ---- forward

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """Input (B, Z, D) of the LLM's first layer, the same on tensor- and context-parallel ranks; first stage."""
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
                group=parallel_state.get_tensor_and_context_parallel_group(),
                context_group=parallel_state.get_context_parallel_group(),
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
                row_lens = from_first(row_lens, copies)
                embeds = embeds if embeds is None else from_first(embeds, copies)
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


def _stage_copies() -> dist.ProcessGroup:
    """All ranks of this stage, which hold the same trained weights: TP x CP x DP."""
    return parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)


def _refuse(config: ModelConfig) -> None:
    """Refuse settings that DestaModel has and this model does not.

    Raises:
        ConfigError: one of them is set.
    """
    if config.llm.trust_remote_code:
        raise ConfigError("model.llm.trust_remote_code with strategy=megatron: only LLMs built in here can be split")
    if config.llm.attn_implementation is not None:
        raise ConfigError("model.llm.attn_implementation with strategy=megatron: attention is megatron-core's")
    if config.cross_entropy == "liger":
        raise ConfigError("model.cross_entropy=liger with strategy=megatron: the vocabulary is split; use auto")
