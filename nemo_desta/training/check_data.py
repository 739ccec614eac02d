"""``check=true``: reads the rows as training would, opens audio of some, and plans an epoch of batches.

Of a large source evenly spaced rows are read, and counts are scaled up; the report says so. Rows that cannot be used
count as in training: the check fails only where training would stop (``data.bad_rows``).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.audio_io import AudioFile, count_samples, load_audio
from nemo_desta.data.costs import RowRef
from nemo_desta.data.datamodule import DestaDataModule
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import Row, audio_entries
from nemo_desta.data.sampler import BatchPlan, bad_row
from nemo_desta.data.settings import BadRowSettings, LoaderSettings
from nemo_desta.errors import ConfigError, RowError, row_guard

#: Rows that are read of each source, and rows whose audio is decoded.
READ_ROWS, DECODED_ROWS = 20_000, 32


@dataclass
class Rows:
    """What a loader's sources hold. ``tokens``, ``secs``, ``clips`` and ``batches`` (of each rank) are of one epoch.

    ``read``: rows that were read; fewer than ``rows`` in a sample. ``opened``: rows whose audio was decoded as well.
    ``bad``, ``bad_audio``: rows among those that cannot be used, by reason; ``examples``: the first of each reason.
    ``shares``: of each source by name, if they have weights.
    """

    where: str
    rows: int = 0
    read: int = 0
    opened: int = 0
    tokens: float = 0.0
    secs: float = 0.0
    clips: float = 0.0
    batches: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_audio: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        """Share of rows that cannot be used, estimated from those that were read and opened."""
        return min(1.0, self.bad.total() / self.read + self.bad_audio.total() / max(1, self.opened))

    def __str__(self) -> str:
        read = "" if self.read == self.rows else f" ({self.read:,} of them read, spread evenly)"
        hours = self.secs / 3600
        mixed = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        epoch = f"{hours:,.2f} h of audio, {self.tokens:,.0f} tokens" if hours < 100 else f"{hours:,.0f} h of audio"
        return f"{self.rows:,} rows{read}, audio of {self.opened} opened; an epoch: {epoch}{mixed and '; '}{mixed}"

    def bad_rows(self) -> str:
        """Reasons, counts and examples in one line; empty without bad rows."""
        counts = [*self.bad.most_common(), *self.bad_audio.most_common()]
        return "; ".join(f"{count} {reason}, such as {self.examples[reason]}" for reason, count in counts)


class EveryNth:
    """Evenly spaced rows of a source."""

    def __init__(self, source: RowSource, stride: int) -> None:
        self.source, self.stride = source, stride
        self.name, self.rules = source.name, source.rules

    def __len__(self) -> int:
        return -(-len(self.source) // self.stride)

    def row(self, i: int) -> Row:
        return self.source.row(i * self.stride)

    def where(self, i: int) -> str:
        return self.source.where(i * self.stride)

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        return self.source.audio_files(i * self.stride, row)


def check_data(
    data: Mapping[str, Any],
    prompts: PromptBuilder,
    num_audio_tokens: Callable[[int], int],
    *,
    sampling_rate: int,
    num_ranks: int,
) -> list[Rows]:
    """Read the rows of training and of each validation set, the training's first.

    Args:
        data: the section ``data``. num_audio_tokens: samples of a clip -> its audio vectors.
        num_ranks: data-parallel processes that share the batches.

    Raises:
        ConfigError: no rows, a source that cannot be opened, or not one usable row.
    """
    module = DestaDataModule(data, prompts=prompts, num_audio_tokens=num_audio_tokens, sampling_rate=sampling_rate)
    if module.settings.train is None:
        raise ConfigError("'data.train_ds' is not given")
    sets = {f"data.validation_ds.datasets.{name}": loader for name, loader in module.settings.validation.items()}
    loaders = {"data.train_ds": module.settings.train, **sets}
    return [_read(module, loader, where, num_ranks) for where, loader in loaders.items()]


def refuse_bad_rows(found: Rows, limits: BadRowSettings, epochs: float) -> None:
    """Raise `ConfigError` if training over ``epochs`` would stop because of its bad rows, which each epoch counts."""
    num_bad = found.bad_share * found.rows
    if found.bad_share > limits.max_share and num_bad * max(1.0, epochs) >= limits.min_bad_rows:
        raise ConfigError(
            f"{found.where}: {num_bad:,.0f} of {found.rows:,} rows cannot be used ({found.bad_share:.1%}; the "
            f"limit is {limits.max_share:.1%}, data.bad_rows.max_share): {found.bad_rows()}"
        )


def _read(module: DestaDataModule, loader: LoaderSettings, where: str, num_ranks: int) -> Rows:
    found, sizes = Rows(where), []

    def thinned(source: RowSource) -> RowSource:
        sizes.append(len(source))
        return source if len(source) <= READ_ROWS else EveryNth(source, -(-len(source) // READ_ROWS))

    try:
        plan, _ = module.open_loader(loader, seed=None, view=thinned)
    except (ConfigError, FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    plan.num_ranks = num_ranks
    found.rows, found.read = sum(sizes), sum(len(weighted.source) for weighted in plan.sources)
    means = [_read_source(plan, number, found, module.sampling_rate) for number in range(len(plan.sources))]
    if found.bad_share == 1.0:
        hint = ". Rows are lines of JSON, as recipes write them (docs/rows.md)" if "not_json" in found.bad else ""
        raise ConfigError(f"{where}: none of {found.rows:,} rows can be used: {found.bad_rows()}{hint}")
    shares = [weighted.share for weighted in plan.sources]
    drawn = planned = None
    if None not in shares:
        found.shares = {one.source.name: share / sum(shares) for one, share in zip(plan.sources, shares, strict=True)}
        drawn = planned = plan.settings.rows_per_epoch
        sizes = [share / sum(shares) * (drawn or found.rows) for share in shares]
    found.tokens, found.secs, found.clips = (
        sum(size * mean for size, mean in zip(sizes, column, strict=True)) for column in zip(*means, strict=True)
    )
    found.batches = round(plan.num_batches() * (drawn or found.rows) / (planned or found.read))
    return found


def _read_source(plan: BatchPlan, number: int, found: Rows, sampling_rate: int) -> tuple[float, float, float]:
    """Read a source's rows and count them into ``found``; returns a usable row's mean tokens, seconds and clips."""
    source = plan.sources[number].source
    decoded = range(0, len(source), max(1, len(source) // DECODED_ROWS))
    usable, tokens, secs, num_clips = 0, 0, 0.0, 0
    for index in range(len(source)):
        reasons = found.bad
        try:
            with row_guard(source.where(index)):
                cost, row = plan.tokens(RowRef(number, index)), source.row(index)
                durations = [entry.get("duration") for entry in audio_entries(row)]
                if index in decoded:
                    reasons, found.opened = found.bad_audio, found.opened + 1
                    clips = [load_audio(file, sampling_rate) for file in source.audio_files(index, row)]
                    durations = [len(clip) / sampling_rate for clip in clips]
                elif None in durations:
                    files = source.audio_files(index, row)
                    durations = [count_samples(file, sampling_rate) / sampling_rate for file in files]
        except RowError as error:
            bad = bad_row(source, index, error)
            reasons[bad["reason"]] += 1
            found.examples.setdefault(bad["reason"], f"{bad['where']} ({bad['detail']:.200})")
            continue
        usable, tokens, secs = usable + 1, tokens + cost, secs + sum(durations)
        num_clips += len(durations)
    return tokens / max(1, usable), secs / max(1, usable), num_clips / max(1, usable)
