"""What an attribute's accuracy means beside its cascades: the same LLM reads text instead of hearing the clip."""

from collections.abc import Mapping
from typing import Any

from nemo_desta.evaluation.attributes import Accuracy, TaskResult


def cascade_figures(result: TaskResult, cascade: Accuracy | None, key: str) -> dict[str, Any]:
    """The entries ``<key>`` (None if it was not measured), ``<key>_interval`` and ``of_the_<key>``: accuracy over the
    cascade's. For ``text_cascade`` also ``readable``: whether the LLM beats the best constant answer for certain when
    it reads the true description."""
    if cascade is None:
        found = {key: None, f"{key}_interval": None, f"of_the_{key}": None}
        readable = None
    else:
        share = result.accuracy.value / cascade.value if cascade.correct else None
        found = {key: cascade.value, f"{key}_interval": cascade.interval, f"of_the_{key}": share}
        readable = cascade.interval[0] > result.constant[1]
    return {**found, "readable": readable} if key == "text_cascade" else found


def cascade_sentence(entry: Mapping[str, Any]) -> str:
    """What a text cascade near chance means; "" for others."""
    if entry["readable"] is not False:
        return ""
    (low, high), (value, accuracy) = entry["text_cascade_interval"], entry["best_constant"]
    return (
        f"The LLM cannot read this attribute: its text cascade {entry['text_cascade']:.3f} ({low:.2f}-{high:.2f}) is "
        f"not above the best constant answer {accuracy:.3f} ({value}). So this task says nothing about hearing."
    )
