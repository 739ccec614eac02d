"""``check=true``: what a run would read, train, need and take.

The LLM is built on the meta device, without weights; encoders and projector are built for real.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_desta.config import FeatureCacheConfig, ModelConfig
from nemo_desta.core import build
from nemo_desta.core.cost import Flops, Speed, default_mfu, find_gpu, llm_flops, position_flops, rate_text
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.core.loss import choose_cross_entropy
from nemo_desta.core.trust import code_named
from nemo_desta.data.settings import DataSettings
from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.build import audio_rates, build_encoders, build_projector_for
from nemo_desta.perception.dry_run import dry_run
from nemo_desta.perception.feature_cache import GB, check_cacheable
from nemo_desta.perception.projector.base import list_parts
from nemo_desta.sources import resolve_source, weights_note
from nemo_desta.training.check_data import READ_ROWS, Rows, check_data, refuse_bad_rows
from nemo_desta.training.check_settings import Rates
from nemo_desta.training.feature_precompute import cost_of, list_clips
from nemo_desta.training.strategies import Split
from nemo_desta.types import first_rate

GIB = 1024**3
#: From this number of epochs on, the report asks whether they are meant.
MANY_EPOCHS = 1000
#: Share of the positions that are taken as targets; only the LLM's head depends on it.
TARGETS = 0.5


def report(
    model: ModelConfig,
    settings: Mapping[str, Any],
    data: DataSettings,
    rates: Rates,
    *,
    num_processes: int | None,
    split: Split | None = None,
) -> str:
    """A summary of the run that ``settings`` describes.

    Args:
        num_processes: of all nodes; None if it depends on the machine. split: how the LLM is split over GPUs.

    Raises:
        ConfigError: parts that do not fit each other, rows that cannot be used, or too many bad rows.
    """
    elsewhere = settings["check"] == "elsewhere"
    llm = _empty_llm(model, elsewhere=elsewhere)
    text = llm.config.get_text_config()
    encoders = build_encoders(model.perception)
    projector = build_projector_for(model.perception, encoders, text.hidden_size, output_rms=1.0)
    trained = _trained(model, llm, projector)
    if not (elsewhere and model.cross_entropy == "liger"):
        with _refusing("model.cross_entropy"):
            choose_cross_entropy(model.cross_entropy)
    rate = first_rate(audio_rates(model.perception, encoders))
    ranks = max(1, (num_processes or 1) // (split.ranks_per_copy if split else 1))
    rows = check_data(
        settings["data"],
        build.build_prompts(build.build_tokenizer(model.llm), model.prompt),
        lambda num_samples: projector.num_tokens(num_samples, rate),
        sampling_rate=rate,
        num_ranks=ranks,
    )
    schedule = Schedule(settings, rows[0], ranks, num_processes)
    for found in rows:
        refuse_bad_rows(found, data.bad_rows, schedule.epochs if found is rows[0] else 1)
    _check_validation_interval(settings["trainer"], rows[0].batches)
    trainer = settings["trainer"]
    strategy = (trainer.get("strategy") or {"name": "auto"})["name"]
    tokens = [projector.num_tokens(secs * rate, rate) for secs in (60, 10)]
    lines = [
        *_model_lines(model, llm, encoders, projector, trained),
        f"audio tokens   {tokens[0] / 60:.2f} per second of audio; 10 s become {tokens[1]}",
        *_data_lines(rows),
        _cache_line(model, data, encoders, projector, schedule.epochs),
        *schedule.lines(rates, data.train.max_batch_size, data.train.batch_tokens),
        *schedule.cost_lines(model, llm, encoders, projector),
        *schedule.notes(len(rows) - 1),
        _memory_line(model, llm, encoders, sum(trained.values()), data.train.batch_tokens, split, _gpu(settings)),
        f"strategy       {strategy}, {trainer.get('devices', 'auto')} devices, {trainer.get('num_nodes', 1)} nodes",
        *([f"layout         {split.description}"] if split else []),
        "data, weights and config are complete: leave out check to train",
    ]
    return "\n".join(lines)


class Schedule:
    """Steps, epochs and batches of a run over ``rows``.

    ``ranks``: processes that read different rows; ``num_processes``: all of them, None if that is not known here.
    """

    def __init__(self, settings: Mapping[str, Any], rows: Rows, ranks: int, num_processes: int | None) -> None:
        trainer = settings["trainer"]
        self.num_processes, self.settings = num_processes, settings
        self.rows, self.ranks, self.rate = rows, ranks, settings.get("check_rate")
        self.window = trainer.get("accumulate_grad_batches") or 1
        batches = rows.batches
        if isinstance(limit := trainer.get("limit_train_batches"), int):
            batches = min(batches, limit)
        self.steps_per_epoch = -(-batches // self.window)
        self.max_steps = trainer.get("max_steps", -1)
        if (max_epochs := trainer.get("max_epochs") or -1) > 0:
            by_epochs = max_epochs * self.steps_per_epoch
            self.max_steps = by_epochs if self.max_steps < 1 else min(self.max_steps, by_epochs)
        self.epochs = max(0, self.max_steps) / max(1, self.steps_per_epoch)

    def lines(self, rates: Rates, max_batch_size: int, batch_tokens: int) -> Iterator[str]:
        """Lines of the report."""
        known = "" if self.num_processes else " (how many is not known here)"
        rows, tokens = (amount / max(1, self.steps_per_epoch) for amount in (self.rows.rows, self.rows.tokens))
        yield (
            f"batch          {max_batch_size} rows or {batch_tokens} tokens at most, "
            f"x {_processes(self.ranks)}{known} x {self.window} accumulated; on average {rows:,.1f} "
            f"rows and {tokens:,.0f} tokens per step"
        )
        yield (
            f"steps          {self.max_steps:,} of {self.steps_per_epoch:,} per epoch: {self.epochs:,.1f} epochs"
            + (f"; {self.epochs:,.0f} are many, is trainer.max_steps meant?" if self.epochs >= MANY_EPOCHS else "")
        )
        warmup = ""
        if rates.warmup_steps is not None and self.max_steps > 0:
            share = rates.warmup_steps / self.max_steps
            warmup = f", warm-up {rates.warmup_steps:,} steps ({share:.1%} of the run)"
        yield f"learning rate  {rates.peak:g} at most, {rates.last:.3g} at the end{warmup}"
        if self.rate:
            hours = self.rows.secs / 3600 * self.epochs / self.rate
            yield (
                f"time           about {hours / (self.num_processes or 1):,.1f} h on "
                f"{_processes(self.num_processes or 1)}, {hours:,.1f} GPU-hours, at {self.rate:g} hours of audio "
                "per GPU-hour (check_rate)"
            )

    def cost_lines(
        self, model: ModelConfig, llm: Any, encoders: Mapping[str, Any], projector: torch.nn.Module
    ) -> Iterator[str]:
        """Lines about FLOPs and, for a run on GPUs whose rate is not given, time: computed at an assumed MFU."""
        try:
            flops = self._step_flops(model, llm, encoders, projector)
        except Exception as error:  # a part of another package may need numbers, which a dry run does not have
            reason = " ".join(str(error).split())
            yield f"compute        not known: a dry run of encoders and projector failed: {reason}"
            return
        yield f"compute        {flops} per step, half of the positions taken as targets"
        gpu = _gpu(self.settings)
        if self.rate or gpu is None:
            return
        stages = (self.settings["trainer"].get("strategy") or {}).get("pipeline_parallel_size", 1)
        waiting = (self.window + stages - 1) / self.window  # the ends of a pipeline
        speed = Speed(gpu, default_mfu(llm.config.get_text_config()))
        rate = self.rows.secs / max(1, self.steps_per_epoch) / (speed.secs(flops.total) * waiting)
        hours = self.rows.secs / 3600 * self.epochs / rate
        yield (
            f"time           about {hours / (self.num_processes or 1):,.1f} h on "
            f"{_processes(self.num_processes or 1)}, {hours:,.1f} GPU-hours, at {rate_text(rate)} hours of audio per "
            f"GPU-hour: computed, assuming {speed}; check_rate=<measured> replaces it"
        )

    def _step_flops(
        self, model: ModelConfig, llm: Any, encoders: Mapping[str, Any], projector: torch.nn.Module
    ) -> Flops:
        """Of an average step of all processes. With a feature cache, clips are encoded in the first epoch alone."""
        rows, tokens, clips = (
            amount / max(1, self.steps_per_epoch) for amount in (self.rows.rows, self.rows.tokens, self.rows.clips)
        )
        rate = first_rate(audio_rates(model.perception, encoders))
        cost = dry_run(encoders, projector, self.rows.secs / max(1, self.rows.clips), rate)
        config, cached = llm.config.get_text_config(), self.settings["data"].get("feature_cache")
        ends = {id(layer.weight) for layer in (llm.get_input_embeddings(), llm.get_output_embeddings())}
        weights = {name: p for name, p in llm.named_parameters() if id(p) not in ends and "vision" not in name}
        lora = {name: weights.pop(name).numel() for name in list(weights) if ".lora_" in name}
        return llm_flops(
            config,
            position_flops(((name, p.shape) for name, p in weights.items()), config),
            rows=rows,
            length=tokens / max(1, rows),
            targets=tokens * TARGETS,
            lora=sum(lora.values()),
            recompute=model.activation_checkpointing,
            encoders=clips * cost.encoder_flops / (max(1.0, self.epochs) if cached else 1),
            projector=clips * cost.projector_flops,
        )

    def notes(self, num_validation_sets: int) -> Iterator[str]:
        """Lines about saves and validations that do not take place."""
        saves = self.settings["exp_manager"].get("checkpoint_callback_params") or {}
        every, interval = saves.get("every_n_train_steps"), self.settings["trainer"].get("val_check_interval")
        over_epochs = self.settings["trainer"].get("check_val_every_n_epoch", 1) is None
        if isinstance(every, int) and 0 < self.max_steps < every:
            yield f"note           checkpoints are saved every {every:,} steps: none before the end of this run"
        batches = self.max_steps * self.window
        if num_validation_sets and over_epochs and isinstance(interval, int) and 0 < batches < interval:
            yield f"note           the rows are validated every {interval:,} batches: not in this run"


def _trained(model: ModelConfig, llm: Any, projector: torch.nn.Module) -> dict[str, int]:
    """Name and size of every parameter that is trained."""
    parameters = {f"perception.projector.{name}": p for name, p in projector.named_parameters()}
    parameters |= {f"llm.{name}": p for name, p in llm.named_parameters() if ".lora_" in name}
    build.freeze_by_pattern(parameters, model.freeze)
    return {name: p.numel() for name, p in parameters.items() if p.requires_grad}


def _model_lines(
    model: ModelConfig, llm: Any, encoders: Mapping[str, Any], projector: torch.nn.Module, trained: Mapping[str, int]
) -> Iterator[str]:
    text, size = llm.config.get_text_config(), _llm_size(llm)
    yield f"LLM            {model.llm.path}: {_amount(size)} parameters, {text.num_hidden_layers} layers, frozen"
    of_lora = sum(size for name, size in trained.items() if ".lora_" in name)
    if model.llm.lora is not None:
        yield f"LoRA           r={model.llm.lora.r}: {of_lora:,} trainable parameters"
    for name, encoder in encoders.items():
        yield (
            f"encoder        {name}: {_amount(_numel(encoder))} parameters, layers {list(encoder.layer_ids)}, "
            f"{encoder.frame_rate:g} frames/s, frozen"
        )
        if path := model.perception.encoders[name].get("path"):
            yield f"               {path}{weights_note(path)}"
    name = model.perception.projector.get("_target_") or model.perception.projector.get("name", "window")
    yield f"projector      {name}: {sum(trained.values()) - of_lora:,} trainable parameters"
    yield f"parts          {list_parts(projector)}"


def _memory_line(
    model: ModelConfig,
    llm: Any,
    encoders: Mapping[str, Any],
    trained: int,
    tokens: int,
    split: Split | None,
    gpu: str | None,
) -> str:
    width = torch.finfo(as_dtype(model.llm.dtype)).bits // 8
    parts, sharding = (split.num_parts, f"LLM in {split.num_parts} parts") if split else (1, "without sharding")
    frozen = (_llm_size(llm) / parts + sum(map(_numel, encoders.values()))) * width
    weights = frozen + trained * 16  # fp32 weight, gradient, two Adam moments
    text, recompute = llm.config.get_text_config(), model.activation_checkpointing
    activations = activation_bytes(text, tokens, width, recompute=recompute)
    return (
        f"memory         about {weights / GIB:.2f} GiB weights and optimiser + {activations / GIB:.2f} GiB "
        f"activations at {tokens} tokens per batch, {'' if gpu is None else 'per GPU, '}{sharding} (estimate)"
    )


def _gpu(settings: Mapping[str, Any]) -> str | None:
    """The name in `nemo_desta.core.cost` of the GPU that trains, "h100" for an unknown one; None for a CPU."""
    if settings["check"] == "elsewhere":
        return "h100"
    on_cpu = settings["trainer"].get("accelerator") == "cpu" or not torch.cuda.is_available()
    return None if on_cpu else find_gpu(torch.cuda.get_device_name()) or "h100"


def _llm_size(llm: torch.nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in llm.named_parameters() if ".lora_" not in name)


def _processes(count: int) -> str:
    return f"{count} process" if count == 1 else f"{count} processes"


def activation_bytes(config: Any, num_tokens: int, width: int, *, recompute: bool) -> float:
    """Bytes that backward through the frozen blocks keeps for ``num_tokens`` positions.

    Estimate per block and position: ten vectors of the hidden size and three of the feed-forward's (inputs of norms,
    attention and of the gated product); with recomputation only the block's input.
    """
    if recompute:
        return num_tokens * config.num_hidden_layers * config.hidden_size * width
    per_position = 10 * config.hidden_size + 3 * config.intermediate_size
    return num_tokens * config.num_hidden_layers * per_position * width


def _empty_llm(model: ModelConfig, *, elsewhere: bool) -> Any:
    """The LLM on the meta device, with LoRA if the config has it.

    ``elsewhere``: this machine need not have the attention that the config names. A kernel of the hub is not fetched.
    """
    trust = model.llm.trust_remote_code
    with code_named(model.llm.path):
        config = AutoConfig.from_pretrained(resolve_source(model.llm.path), trust_remote_code=trust)
    chosen = model.llm.attn_implementation
    attention = {} if chosen is None or elsewhere or "/" in chosen else {"attn_implementation": chosen}
    with torch.device("meta"), _refusing(f"'model.llm.attn_implementation' is '{chosen}'"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=trust, **attention).requires_grad_(False)
        build.check_reads_embeddings(llm)
        return llm if model.llm.lora is None else build.add_lora(llm, model.llm.lora)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Turn a library's refusal of a setting into a `ConfigError` that names it."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def _data_lines(rows: list[Rows]) -> Iterator[str]:
    for found in rows:
        name = "training" if found is rows[0] else found.where.rpartition(".")[2]
        yield f"data           {name}: {found}"
        if bad := found.bad_rows():
            yield f"bad rows       {name}: {found.bad_share:.1%}, which training skips: {bad}"
    if len(rows) == 1:
        yield "data           no validation set: checkpoints have no val_loss"


def _cache_line(
    model: ModelConfig, data: DataSettings, encoders: Mapping[str, Any], projector: torch.nn.Module, epochs: float
) -> str:
    """What the feature cache costs and saves in this run, also where it is off."""
    settings, rate = data.feature_cache or FeatureCacheConfig(), first_rate(audio_rates(model.perception, encoders))
    off = "" if data.feature_cache else "off; it would hold "
    try:
        open_feature_cache(settings, model)
        check_cacheable(encoders, projector)
    except ConfigError as error:
        if data.feature_cache:
            raise
        return f"feature cache  off, and not possible here ({error})"
    clips = list_clips(data, audio_role=model.prompt.audio_role, sampling_rate=rate, limit=READ_ROWS)
    cost = cost_of(list(clips.values()), encoders, settings, sampling_rate=rate)
    size = f"{off}{cost} of the rows that were read"
    if not off and settings.max_gb is not None and cost.num_bytes > settings.max_gb * GB:
        size += f", more than max_gb={settings.max_gb:g}: features will be removed before they are read again"
    return f"feature cache  {size}; the encoders run once per clip instead of in each of {epochs:,.1f} epochs"


def _check_validation_interval(trainer: Mapping[str, Any], batches: int) -> None:
    """Raise `ConfigError` where Lightning would: a validation inside epochs that are shorter than its interval."""
    interval = trainer.get("val_check_interval")
    if trainer.get("check_val_every_n_epoch", 1) is not None and isinstance(interval, int) and interval > batches:
        raise ConfigError(
            f"'trainer.val_check_interval' is {interval}, but an epoch has {batches} batches; with "
            "trainer.check_val_every_n_epoch=null the interval counts over epochs"
        )


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _numel(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
