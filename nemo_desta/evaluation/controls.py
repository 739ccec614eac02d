"""Controls that show whether the model uses the audio: the same questions with silence, or with another item's clip.

A model that scores as well without the right audio answers from the text alone. The comparison is paired, item by
item. The report's first line states the result.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nemo_desta.config import nearest
from nemo_desta.data.audio_io import count_samples
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.files import Item
from nemo_desta.evaluation.intervals import paired_difference
from nemo_desta.evaluation.settings import ControlSettings

RATE = 16_000
CONTROLS = ("silence", "shuffled")
#: With fewer pairs not even a sign test can be certain at 95 %: 2 * 0.5 ** 5 > 0.05.
FEWEST = 6


@dataclass(frozen=True)
class Control:
    """``difference``: accuracy with the right audio minus without, over ``count`` items; its 95 % interval."""

    name: str
    count: int
    accuracy: float
    difference: float
    low: float
    high: float

    @property
    def hears(self) -> bool:
        """Whether the gain from the right audio is certain: its interval is above 0, over enough items."""
        return self.low > 0 and self.count >= FEWEST


def sample(items: Sequence[Item], count: int, *, seed: int = 0) -> list[Item]:
    """At most ``count`` items with audio, drawn by ``seed``, in their order."""
    heard = [item for item in items if item.audio is not None]
    chosen = set(random.Random(seed).sample(range(len(heard)), min(count, len(heard))))
    return [item for i, item in enumerate(heard) if i in chosen]


def silenced(items: Sequence[Item], folder: str | Path) -> list[Item]:
    """The items with silence of the length of their clips.

    ``folder`` gets one file per length, in tenths of seconds.
    """
    import soundfile

    folder = Path(folder).absolute()  # rows need absolute paths
    folder.mkdir(parents=True, exist_ok=True)
    result = []
    for item in items:
        tenths = max(1, round(10 * count_samples(item.audio, RATE) / RATE))
        file = folder / f"silence_{tenths / 10:.1f}s.wav"
        if not file.is_file():
            soundfile.write(file, np.zeros(tenths * RATE // 10, np.int16), RATE)
        result.append(replace(item, audio=file))
    return result


def shuffled(items: Sequence[Item], *, seed: int = 0) -> list[Item]:
    """The items with each other's clips: no item keeps its own clip. As few items as possible get the clip of an item
    with the same answer.

    Raises:
        ValueError: fewer than two different clips.
    """
    clips = [item.audio for item in items]
    if len(set(clips)) < 2:
        raise ValueError(f"{len(set(clips))} different clips cannot be shuffled; two are needed")
    rng = random.Random(seed)
    order = list(range(len(items)))
    rng.shuffle(order)
    order.sort(key=lambda i: items[i].answer)  # a rotation by the largest group's size moves every group
    largest = Counter(item.answer for item in items).most_common(1)[0][1]
    best, fewest = order, len(items) + 1
    for turn in [largest, *range(1, len(items))]:
        rotated = order[turn:] + order[:turn]
        if any(clips[a] == clips[b] for a, b in zip(order, rotated, strict=True)):
            continue
        same = sum(items[a].answer == items[b].answer for a, b in zip(order, rotated, strict=True))
        if same < fewest:
            best, fewest = rotated, same
        if same == 0:
            break
    if fewest > len(items):  # many items share clips: draw any other clip for each
        return [replace(item, audio=rng.choice([c for c in clips if c != item.audio])) for item in items]
    given = dict(zip(order, best, strict=True))
    return [replace(item, audio=clips[given[i]]) for i, item in enumerate(items)]


def run_controls(
    items: Sequence[Item],
    settings: ControlSettings,
    folder: str | Path,
    heard: Callable[[Sequence[Item]], Sequence[bool | None]],
    ask: Callable[[str, Sequence[Item]], Sequence[bool | None]],
    *,
    seed: int = 0,
) -> list[Control]:
    """Asks about a sample of ``items`` again without the right audio and compares, item by item.

    Args:
        folder: for the silent clips. heard: returns the verdicts of items with their own clips.
        ask: returns the verdicts of changed items, for one kind of control.

    Raises:
        ConfigError: an unknown kind.
    """
    for kind in settings.kinds:
        if kind not in CONTROLS:
            raise ConfigError(f"unknown control '{kind}'.{nearest(kind, CONTROLS)}")
    some = sample(items, settings.items, seed=seed)
    right = heard(some) if some else []
    results = []
    for kind in settings.kinds:
        if not some or (kind == "shuffled" and len({item.audio for item in some}) < 2):
            continue
        changed = silenced(some, folder) if kind == "silence" else shuffled(some, seed=seed)
        pairs = [(a, b) for a, b in zip(right, ask(kind, changed), strict=True) if a is not None and b is not None]
        if pairs:
            results.append(compare(kind, [a for a, _ in pairs], [b for _, b in pairs], seed=seed))
    return results


def compare(name: str, with_audio: Sequence[bool], without: Sequence[bool], *, seed: int = 0) -> Control:
    """Compares verdicts of the same items with and without the right audio."""
    difference, low, high = paired_difference(list(map(float, with_audio)), list(map(float, without)), seed=seed)
    return Control(name, len(without), float(np.mean(without)), difference, low, high)


def uses_audio(controls: Sequence[Control]) -> bool | None:
    """Whether the right audio is above every control for certain; None if no control was run."""
    return all(control.hears for control in controls) if controls else None


def first_line(tasks: Mapping[str, Sequence[Control]], unreadable: Collection[str] = ()) -> str:
    """The report's first line: which tasks are above their controls for certain, and which are not.

    ``unreadable``: tasks that the LLM cannot solve from the true description either.
    """
    if not any(tasks.values()):
        return "No control was run: whether these scores need the audio is not known."
    shown = {name: min(each, key=lambda c: c.low) for name, each in tasks.items() if uses_audio(each)}
    not_shown = {
        name: min((c for c in each if not c.hears), key=lambda c: c.difference)
        for name, each in tasks.items()
        if uses_audio(each) is False
    }
    parts = []
    if shown:
        gains = ", ".join(f"{name} ({_gain(control)})" for name, control in shown.items())
        parts.append(f"The model uses the audio in {gains}.")
    if not_shown:
        reasons = {name: "; the LLM cannot read it" if name in unreadable else "" for name in not_shown}
        gains = ", ".join(f"{name} ({_gain(control)}{reasons[name]})" for name, control in not_shown.items())
        parts.append(f"WARNING: the score does not show that the model uses the audio in {gains}.")
    if unknown := [name for name, each in tasks.items() if not each]:
        parts.append(f"No control was run for {', '.join(unknown)}.")
    return " ".join(parts)


def _gain(control: Control) -> str:
    return f"{control.accuracy + control.difference:.3f}, {control.name} {control.accuracy:.3f}"
