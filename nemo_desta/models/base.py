"""The base of the plain NeMo model and of the Megatron model: config, prompts, checkpoints, validation.

Both have the same names in their state dict, so a projector trained by one loads in the other. A subclass provides
``llm``, ``perception`` and ``loss``.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningModule
from nemo.collections.speechlm2.parts.optim_setup import configure_optimizers
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nemo_desta.config import ModelConfig, parse, to_dict
from nemo_desta.core import build, frozen
from nemo_desta.core.folder import check_trained_names, is_trained_name, save_folder
from nemo_desta.core.model import SpeechMixin
from nemo_desta.errors import ConfigError
from nemo_desta.models.loss_window import LossWindow
from nemo_desta.models.step_count import share_step_count
from nemo_desta.perception.build import audio_rates
from nemo_desta.types import Rates


class DestaBase(SpeechMixin, LightningModule):
    """Everything but the LLM and how it runs. Subclasses call `adopt` in their constructor."""

    def adopt(self, cfg: Mapping[str, Any] | DictConfig | ModelConfig) -> None:
        """Read NeMo's ``model`` section and build tokenizer and prompts; no weights yet."""
        if isinstance(cfg, DictConfig):
            cfg = OmegaConf.to_container(cfg, resolve=True)
        self.config = cfg if isinstance(cfg, ModelConfig) else parse(ModelConfig, cfg)
        self.cfg = OmegaConf.create(to_dict(self.config))  # what NeMo's helpers read
        self.strict_loading = False  # checkpoints hold the trained part only, which load_state_dict checks
        self.prompts = build.build_prompts(build.build_tokenizer(self.config.llm), self.config.prompt)
        self.window = LossWindow()
        self.validation_names: list[str] = []
        self.trained_tokens = 0  # supervised tokens of all steps of this process
        self.read_positions = (0, 0)  # of the last batch: tokens, tokens and padding
        self.step_losses: list[tuple[list[str], Tensor]] = []  # rows and loss per token of the last step

    # ---- what the model is made of

    @cached_property
    def audio_rates(self) -> Rates:
        """See `SpeechMixin.audio_rates`; also where this process has no perception (Megatron's pipeline)."""
        return audio_rates(self.config.perception) if self.perception is None else self.perception.audio_rates

    @property
    def ranks_per_batch(self) -> int:
        """Processes that work on one batch together."""
        return 1

    @property
    def writes_samples(self) -> bool:
        """Whether this process takes part in generating answers to validation rows."""
        return self.trainer.world_size == 1

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that belong in a checkpoint, also those that ``freeze`` patterns match."""
        return ((name, p) for name, p in self.named_parameters() if is_trained_name(name))

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, int, Tensor]:
        """Summed cross-entropy of a batch's targets, the number of targets, and how many the argmax gets right."""
        raise NotImplementedError

    def write(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> Tensor:
        """Greedy answers to a batch of prompts: new ids (B, at most max_new_tokens), padded after the end of turn."""
        raise NotImplementedError

    # ---- training and validation

    def setup(self, stage: str) -> None:
        """Fix the date that a chat template writes to the start of the run, on all ranks and after resumes; log a
        system prompt that the template adds."""
        if stage == "fit":
            self.prompts.tell_default_system('model.prompt.system="" (as request.system="" of a recipe)')
        if stage == "fit" and self.prompts.date is None:
            now = self.trainer.strategy.broadcast(datetime.now().isoformat())
            self.prompts.freeze_date(datetime.fromisoformat(now))

    def configure_optimizers(self) -> dict[str, Any]:
        """NeMo's own, with trainable parameters only; NeMo 2.7 would pass every frozen parameter to the optimiser."""
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        return configure_optimizers(SimpleNamespace(cfg=self.cfg, named_parameters=lambda: trained))

    def log_step(self, num_tokens: int) -> Tensor | None:
        """Log one optimiser step: learning rate, norm of the gradients before they are clipped, supervised tokens.

        Returns the norm; None where the step is skipped.
        """
        self.trained_tokens += num_tokens
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], "supervised_tokens": float(num_tokens)}
        if (norm := self.gradient_norm()) is not None:
            values["grad_norm"] = norm
        self.log_dict(values, batch_size=1)
        return norm

    def gradient_norm(self) -> Tensor | None:
        """Of the gradients of everything that is trained; None where the step is skipped."""
        gradients = [p.grad for _, p in self.trained_parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients) if gradients else None

    def on_validation_epoch_start(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.validation_names[dataloader_idx] if self.validation_names else str(dataloader_idx)
        loss, num_tokens, num_correct = self.loss(batch)
        totals = torch.stack([loss.double(), loss.new_tensor(num_tokens).double(), num_correct.double()])
        self._totals[name] = self._totals.get(name, torch.zeros_like(totals)) + totals

    def on_validation_epoch_end(self) -> None:
        names = self.validation_names or sorted(self._totals)
        zeros = torch.zeros(3, dtype=torch.float64, device=self.device)
        totals = torch.stack([self._totals.get(name, zeros) for name in names])
        if self.trainer.world_size > 1:  # ranks that share a batch all count it, which does not change the means
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        for name, (loss, num_tokens, num_correct) in zip(names, totals.tolist(), strict=True):
            if num_tokens:
                self.log(f"val_loss_{name}", loss / num_tokens)
                if num_correct >= 0:
                    self.log(f"val_acc_{name}", num_correct / num_tokens)
        loss, num_tokens, _ = totals.sum(0).tolist()
        self.log("val_loss", loss / max(1.0, num_tokens), prog_bar=True)

    # ---- on disk

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained part alone: the projector with its buffers, and LoRA."""
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        return {name: t for name, t in full.items() if is_trained_name(name.removeprefix(prefix))}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained part; a missing or surplus tensor is always an error."""
        check_trained_names(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        saved["nemo_desta"] = {"model": to_dict(self.config), "frozen": frozen.identify(self.config)}
        if self.prompts.date is not None:
            saved["nemo_desta"]["template_date"] = self.prompts.date.isoformat()

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        before = saved["nemo_desta"]
        frozen.check_identity(
            before["frozen"],
            self.config,
            trained=frozen.frozen_sources(parse(ModelConfig, before["model"])),
            repair="A run resumes with the frozen parts that it started with. For others start a new run; its "
            "projector can be initialised from this one's model folder: model.perception.init_from=<folder>",
        )
        if "template_date" in before:
            self.prompts.freeze_date(datetime.fromisoformat(before["template_date"]))
        share_step_count(saved)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> Any:
        """Not supported: Lightning unpickles the file, which can run code in it.

        Raises:
            ConfigError: always; the message says how to open a checkpoint.
        """
        raise ConfigError(
            f"'{checkpoint_path}': Lightning's load_from_checkpoint can run code of the file. To use the "
            "trained model, export it (desta export model=<checkpoint> output=<folder>) and open the "
            "folder by from_pretrained; to resume, run the training command again"
        )

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> Path:
        """Write a model folder: trained tensors, config, tokenizer and the frozen parts' fingerprints."""
        return save_folder(save_directory, self.config, self.state_dict(), self.tokenizer)
