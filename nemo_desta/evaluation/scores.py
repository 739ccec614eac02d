"""The scorers, what a scorer returns, and `score`, their one entry point.

A scorer is a module with ``official`` (the authors' rules, quirks included), ``strict`` (every item counts, nothing is
guessed) and ``QUIRKS`` (behaviour of the official script that a reader of its figures must know). A scorer with a
judge also has ``judge_requests`` and ``with_judgements``, see `scorers.judged`. A benchmark from elsewhere is a
`Benchmark`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.registry import Registry

Item = Mapping[str, Any]
Verdict = bool | None

_SHIPPED = ("mmau", "mmsu", "mmar", "sakura", "speech_ifeval", "voicebench", "air_bench", "dynamic_superb")
#: Benchmark -> module, or subclass of `Benchmark`.
SCORERS = Registry(
    "benchmark", "nemo_desta.benchmarks", {name: f"nemo_desta.evaluation.scorers.{name}" for name in _SHIPPED}
)
MODES = ("official", "strict")


class ItemError(ValueError):
    """An item that cannot be used: ``item`` is its id, or its position."""

    def __init__(self, item: str, what: str) -> None:
        super().__init__(f"item {item}: {what}")
        self.item = item


class Quirk(NamedTuple):
    """Behaviour of an official scorer that a reader of its figures must know; ``reason`` says how it shows."""

    name: str
    what: str
    reason: str = ""


def texts_of(module: str) -> dict[str, Any]:
    """The YAML file of a module's name beside it, e.g. with the judge's prompt; its ``quirks`` as `Quirk`s."""
    texts = yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {**texts, "quirks": tuple(Quirk(**quirk) for quirk in texts.get("quirks", ()))}


class JudgeAsk(NamedTuple):
    """One request to the judge about item ``index``; ``turn`` numbers repeated requests."""

    index: int
    messages: Sequence[Mapping[str, Any]]
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    turn: int = 0


@dataclass(frozen=True)
class Scores:
    """``verdicts``: one per item in order, None = not counted. ``by``: field -> group -> accuracy and count.

    ``num_unparsed``: counted items (strict: all items) whose answer could not be parsed.
    """

    verdicts: list[Verdict]
    totals: dict[str, Any]
    num_items: int
    num_unparsed: int = 0
    by: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def score(benchmark: str, items: Sequence[Item], mode: str = "official", **options: Any) -> Scores:
    """Score the official file's rows, each with the prediction under the official key (`files.prediction_key`).

    ``options``: those of the benchmark's scorer, e.g. ``commit="old"`` for mmsu.

    Raises:
        ValueError: an unknown benchmark or mode. ItemError: an item lacks what the rules need.
        NotImplementedError: the benchmark does not have this mode; the message gives the reason.
    """
    scorer = scorer_of(benchmark)
    if mode not in MODES:
        raise ValueError(f"unknown mode '{mode}'.{nearest(mode, MODES)}")
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise ItemError(f"at position {i}", f"is {type(item).__name__}, each item must be a mapping of fields")
    return getattr(scorer, mode)(items, **options)


def scorer_of(benchmark: str) -> Any:
    """The module or `Benchmark` of a name. Raises ConfigError: an unknown one, or something else."""
    found = SCORERS[benchmark]
    if not hasattr(found, "strict"):
        raise ConfigError(f"benchmark '{benchmark}' is no subclass of nemo_desta.evaluation.benchmark.Benchmark")
    return found() if isinstance(found, type) else found


def need(item: Item, key: str, position: int, kind: type | tuple[type, ...] = str) -> Any:
    """A field that the rules need. Raises ItemError: it is missing or has another type."""
    if key not in item:
        raise ItemError(name_of(item, position), f"has no field '{key}'")
    if not isinstance(item[key], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ItemError(name_of(item, position), f"field '{key}' is {type(item[key]).__name__}, expected {wanted}")
    return item[key]


def answer_of(item: Item, key: str, position: int) -> str | None:
    """The prediction under ``key``; None when there is none (no field, or null).

    Raises:
        ItemError: neither text nor null.
    """
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise ItemError(
            name_of(item, position), f"prediction '{key}' is {type(value).__name__}, expected text or null"
        )
    return value


def name_of(item: Item, position: int) -> str:
    """The item's name in error messages."""
    for key in ("id", "uniq_id", "key"):
        if item.get(key) is not None:
            return f"'{item[key]}'"
    return f"at position {position}"


def groups(items: Sequence[Item], verdicts: Sequence[Verdict], fields: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each field: group -> accuracy and count over the items that count; a field no item has is left out."""
    by: dict[str, dict[str, Any]] = {}
    for key in fields:
        values = ((item.get(key), verdict) for item, verdict in zip(items, verdicts, strict=True))
        if found := tally((str(value), verdict) for value, verdict in values if value is not None):
            by[key] = found
    return by


def tally(pairs: Iterable[tuple[str, Verdict]]) -> dict[str, dict[str, float]]:
    """(group, verdict) pairs -> accuracy and count per group; a verdict of None is not counted."""
    found: dict[str, list[bool]] = {}
    for name, verdict in pairs:
        found.setdefault(name, []).extend([] if verdict is None else [verdict])
    return {name: {"accuracy": sum(v) / len(v) if v else 0.0, "count": len(v)} for name, v in found.items()}


def accuracy_totals(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """``accuracy`` (0 to 1; 0 when nothing counts), ``correct``, ``counted``."""
    counted = [verdict for verdict in verdicts if verdict is not None]
    correct = sum(counted)
    return {"accuracy": correct / len(counted) if counted else 0.0, "correct": correct, "counted": len(counted)}


def strict_scores(items: Sequence[Item], verdicts: Sequence[Verdict], fields: Iterable[str]) -> Scores:
    """Scores where every item counts: a verdict of None is an unparsed answer, which is wrong."""
    counted = [verdict is True for verdict in verdicts]
    unparsed = sum(verdict is None for verdict in verdicts)
    totals = {**accuracy_totals(counted), "unparsed": unparsed}
    totals["unparsed_rate"] = unparsed / len(counted) if counted else 0.0
    return Scores(list(counted), totals, len(counted), unparsed, groups(items, counted, fields))
