"""One process of a run over the fixed batches: any strategy, the same Trainer; gives back what happened."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.training.callbacks import NaNGuard, first_prompts
from nemo_desta.training.strategies import build_strategy, model_class, takes_step
from tests.megatron.fixed_batches import NUM_STEPS, global_batch


def run(
    model: dict[str, Any],
    strategy: dict[str, Any],
    *,
    split: str,
    num_processes: int,
    num_steps: int = NUM_STEPS,
    validate: bool = False,
    answer: bool = False,
    poisoned_step: int | None = None,
    save_to: str | None = None,
    checkpoint: str | None = None,
    resume: str | None = None,
) -> dict[str, Any]:
    """Train ``num_steps`` steps; `Watch.seen`, and the trained ``weights`` on ranks that hold them.

    ``answer``: also write answers to the rows of the first global batch afterwards. ``poisoned_step``: the one whose
    audio is not a number. ``save_to``: a model folder. ``checkpoint``: is written after half of the steps; ``resume``:
    one to begin with.
    """
    torch.manual_seed(0)
    step = {
        "gradient_clip_val": 0.2,  # about half of the steps are above
        "accumulate_grad_batches": 2 if split == "accumulate" else 1,
    }
    by_strategy, by_trainer = (step, {}) if takes_step(strategy) else ({}, step)
    module = model_class(strategy)(model)
    watch = Watch(answer, checkpoint, num_steps // 2)
    trainer = Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy=build_strategy(strategy, step_settings=by_strategy),
        max_steps=num_steps,
        limit_val_batches=None if validate else 0,
        callbacks=[NaNGuard(), watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **by_trainer,
    )
    data = FixedData(module.prompts, split, validate, poisoned_step, first=num_steps // 2 if resume else 0)
    trainer.fit(module, data, ckpt_path=resume)
    if trainer.is_global_zero and save_to is not None:
        module.save_pretrained(save_to)
    return {**watch.seen, "weights": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}}


class Watch(Callback):
    """Losses and gradient norms per optimiser step, clips that each encoder was given, validation, answers."""

    def __init__(self, answer: bool, checkpoint: str | None = None, checkpoint_step: int = 0) -> None:
        self.answer, self.checkpoint, self.checkpoint_step = answer, checkpoint, checkpoint_step
        self.seen: dict[str, Any] = {"losses": [], "clips": {}, "largest_gradient": {}, "validation": {}}
        self.seen["norms"] = []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.first_step = trainer.global_step
        trainer.optimizers[0].register_step_post_hook(self._after_step)
        if module.perception is not None:
            for name, encoder in module.perception.encoders.items():
                encoder.register_forward_pre_hook(self._counts(name))

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        largest = self.seen["largest_gradient"]
        for name, parameter in module.trained_parameters():
            if parameter.grad is not None:
                largest[name] = max(largest.get(name, 0.0), float(parameter.grad.abs().max()))

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        """Norm of what the optimiser was given: divided by the window's tokens, and clipped."""
        found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if found:
            self.seen["norms"].append(float(torch.cat([gradient.reshape(-1) for gradient in found]).norm()))

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step > self.first_step + len(self.seen["losses"]):
            self.seen["losses"].append(float(trainer.callback_metrics["loss"]))
            if self.checkpoint is not None and trainer.global_step == self.checkpoint_step:
                trainer.save_checkpoint(self.checkpoint)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.seen["clips"] = {name: list(counts) for name, counts in self.seen["clips"].items()}  # without answers'
        if self.answer and module.writes_samples:
            batch = next(iter(trainer.fit_loop._combined_loader.flattened[0]))
            prompts = first_prompts(batch, num_rows=5)
            self.seen["answers"] = module.write(prompts, max_new_tokens=6)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        values = trainer.callback_metrics.items()
        self.seen["validation"] = {name: float(value) for name, value in values if name.startswith("val_")}

    def _counts(self, name: str) -> Any:
        counts = self.seen["clips"].setdefault(name, [])
        return lambda encoder, args: counts.append(args[1].numel())


class FixedData(LightningDataModule):
    """The fixed batches of this process's data-parallel rank; the first four again for validation."""

    def __init__(self, prompts: Any, split: str, validate: bool, poisoned_step: int | None, first: int = 0) -> None:
        super().__init__()
        self.prompts, self.split, self.validate, self.poisoned_step = prompts, split, validate, poisoned_step
        self.first = first

    def train_dataloader(self) -> "Loader":
        return self._loader(self.first, NUM_STEPS)

    def val_dataloader(self) -> "Loader | list[Any]":
        return self._loader(0, 4) if self.validate else []

    def _loader(self, first: int, last: int) -> "Loader":
        found = self.trainer.distributed_sampler_kwargs
        rank = found["rank"] if found else 0
        steps = {step: global_batch(self.prompts, step, self.split, rank) for step in range(last)}
        for batch in steps.get(self.poisoned_step, []):
            batch["audio"][:] = float("nan")
        return Loader([batch for batches in steps.values() for batch in batches], len(steps[0]) * first)


class Loader:
    """Ready batches from number ``first`` on; a list of them would be a list of loaders to Lightning."""

    def __init__(self, batches: list[Any], first: int) -> None:
        self.batches, self.first = batches, first

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches[self.first :])

    def __len__(self) -> int:
        return len(self.batches)
