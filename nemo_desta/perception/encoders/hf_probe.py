"""What an audio encoder of transformers does to time, measured once on its first block with random weights.

Letters: N clips, S samples, P positions of the encoder's input, T frames, C width.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.hf_checkpoint import blocks_of, open_checkpoint
from nemo_desta.perception.encoders.hf_features import HFFeatures

#: Tokens that a model puts before its frames.
PREFIX_TOKENS = {"pe_audio_encoder": 1}
#: Arguments for a mask of the input's valid positions; the second is true where there is padding.
MASK, PADDING = "input_features_mask", "audio_mel_mask"
#: Models whose attention_mask is added to the scores of the frames.
ADDED_MASK = ("qwen2_audio_encoder",)
#: Two counts of frames, far enough apart to measure a step.
NEAR, FAR = 2, 7
LONGEST = 1 << 22  # positions; no encoder needs that many for FAR frames


@dataclass(frozen=True)
class Steps:
    """A count that grows by one each ``hop``: ``(max(x, least) - first) // hop + 1``."""

    hop: int
    first: int
    least: int

    def __call__(self, x: int) -> int:
        return (max(x, self.least) - self.first) // self.hop + 1


@dataclass(frozen=True)
class Facts:
    """Measured of an encoder, without its weights.

    ``frames_of``: samples -> frames of a clip (of a window, if it is fixed). ``inner``: positions -> frames, None for
    fixed windows. ``time_axis``: of the input without its first axis. ``blocks``, ``final_norm``: names of modules.
    """

    hidden_size: int
    num_layers: int
    blocks: str
    final_norm: str | None
    prefix_tokens: int
    time_axis: int
    frames_of: Steps
    inner: Steps | None


@lru_cache(maxsize=32)
@torch.random.fork_rng(devices=[])  # the run's own random numbers stay
def measure(path: str, pad_samples: int = 0) -> Facts:
    """Measure the encoder of a folder or hub id.

    Raises:
        ConfigError: no encoder of transformers on one time line.
    """
    checkpoint = open_checkpoint(path)
    features = HFFeatures(path, pad_samples)
    name, all_blocks = blocks_of(checkpoint.outline())
    model = checkpoint.shallow(1)
    _, blocks = blocks_of(model)
    if len(blocks) != 1:
        raise ConfigError(f"'{path}': the number of blocks of '{checkpoint.model_type}' cannot be set in its config")
    wanted = getattr(model, "main_input_name", "input_values")
    if features.raw != (wanted == "input_values"):
        given = type(features.extractor).__name__
        raise ConfigError(
            f"'{path}': its feature extractor {given} does not fit: {checkpoint.model_type} needs {wanted}"
        )
    prefix = PREFIX_TOKENS.get(checkpoint.model_type, 0)
    with torch.device("cpu"), torch.no_grad():
        some, longer = (features(torch.zeros(1, s)) for s in features.two_lengths())
        changed = [i for i, (a, b) in enumerate(zip(some.shape, longer.shape, strict=True)) if a != b]
        axis = (changed or [some.dim() - 1])[0] - 1

        def outputs(values: torch.Tensor) -> torch.Tensor:
            return block_outputs(model, blocks, (1,), values, axis)[0][:, prefix:]

        def of_samples(size: int) -> int:
            values = features(torch.zeros(1, size))
            # A mean or deviation over too few positions is not a number.
            return outputs(values).shape[1] if values.isfinite().all() else 0

        norm = _norm_after(model, blocks, lambda: outputs(some))
        width = outputs(some).shape[2]
        if features.window_samples:
            total, inner = _whole_window(outputs(some).shape[1], features.window_samples, path), None
        else:
            total = _fit(of_samples, path)
            inner = total
            if not features.keeps_samples:
                inner = _fit(lambda size: outputs(_zeros(some, axis + 1, size)).shape[1], path)
    return Facts(width, len(all_blocks), name, norm, prefix, axis, total, inner)


def block_outputs(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    layer_ids: Sequence[int],
    values: torch.Tensor,
    time_axis: int,
    valid: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """What blocks return, the tokens before the frames included.

    values: (N, ...) in the model's layout and dtype; valid: leading positions of each that are not padding, None: all
    -> one (N, T, C) per layer id.
    """
    taps: dict[int, torch.Tensor] = {}

    def keep(layer_id: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        taps[layer_id] = output[0] if isinstance(output, tuple) else output

    hooks = [blocks[i - 1].register_forward_hook(lambda _m, _a, output, i=i: keep(i, output)) for i in layer_ids]
    try:
        model(values, **_masks(model, values, time_axis, valid))
    finally:
        for hook in hooks:
            hook.remove()
    return [taps[i] for i in layer_ids]


def _masks(
    model: nn.Module, values: torch.Tensor, time_axis: int, valid: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    arguments = inspect.signature(model.forward).parameters
    positions = values.shape[time_axis + 1]
    lens = torch.tensor([positions] * len(values) if valid is None else valid, device=values.device)
    if model.config.model_type in ADDED_MASK:
        halved = positions // 2
        hidden = torch.arange(halved, device=values.device) >= (lens[:, None] - 1) // 2 + 1
        added = torch.zeros(len(values), 1, halved, halved, dtype=values.dtype, device=values.device)
        return {"attention_mask": added.masked_fill(hidden[:, None, None], -torch.inf)}
    is_valid = torch.arange(positions, device=values.device) < lens[:, None]
    if PADDING in arguments:
        return {PADDING: ~is_valid}
    return {MASK: is_valid.long()} if MASK in arguments else {}


def _norm_after(model: nn.Module, blocks: nn.ModuleList, run: Callable[[], object]) -> str | None:
    """The name of the norm beside the blocks that ``run`` passes last, after them."""
    owner = next(name for name, module in model.named_modules() if any(c is blocks for c in module.children()))
    norms = {n: m for n, m in model.get_submodule(owner).named_children() if "Norm" in type(m).__name__}
    order: list[str] = []
    watched = [*norms.items(), ("", blocks[-1])]
    hooks = [module.register_forward_hook(lambda *_, name=name: order.append(name)) for name, module in watched]
    run()
    for hook in hooks:
        hook.remove()
    after = order[order.index("") + 1 :]
    return f"{owner}.{after[-1]}".lstrip(".") if after else None


def _whole_window(frames: int, samples: int, path: str) -> Steps:
    hop, rest = divmod(samples, frames)
    if rest:
        raise ConfigError(f"'{path}': the {frames} frames of a window do not divide its {samples} samples evenly")
    return Steps(hop, first=1, least=1)


def _zeros(like: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    shape = list(like.shape)
    shape[axis] = size
    return torch.zeros(shape)


def _fit(count: Callable[[int], int], path: str) -> Steps:
    """The steps of a count that is measured; a size that the model refuses counts as 0."""

    def safe(size: int) -> int:
        try:
            return count(size)
        except (RuntimeError, ValueError, IndexError):
            return 0

    def smallest(wanted: int) -> int:
        low, high = 0, 1  # safe(low) < wanted <= safe(high)
        while safe(high) < wanted:
            low, high = high, 2 * high
            if high > LONGEST:
                raise ConfigError(f"'{path}': the model gives no {wanted} frames for any length of audio")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if safe(middle) >= wanted else (middle, high)
        return high

    near, far = smallest(NEAR), smallest(FAR)
    hop, rest = divmod(far - near, FAR - NEAR)
    steps = Steps(hop, near - (NEAR - 1) * hop, smallest(1)) if hop else None
    probes = (
        [] if steps is None else [steps.least, near - 1, near + hop - 1, near + hop, far + 7 * hop, far + 8 * hop - 1]
    )
    if rest or any(safe(size) != steps(size) for size in probes):
        raise ConfigError(f"'{path}': its frames do not come in even steps of time, so their places are not known")
    return steps
