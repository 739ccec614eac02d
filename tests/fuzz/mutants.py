"""Lines that were rows once: keys, types, values, nesting and bytes changed, reproducibly."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: One line of one file after another, always the same ones; no deadline, as machines are busy.
REPRODUCIBLE = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
}

# What json.dumps does not write, by the text that is replaced by it.
_RAW = {"@deep": "[" * 100_000 + "]" * 100_000, "@digits": "9" * 5000, "@huge": "1e999", "@open": "[" * 100_000}

_KEYS = (
    "id audio audios text transcript truncate truncated role content system prompt duration messages response dataset "
    "value from x Audio \ud83d"
).split()
_TEXTS = [
    *("", " ", "/", "//", "..", "../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "~", "\0", "a" * 5000),
    *("x.raw", "fifo", "folder", "empty.wav", "cut.flac", "missing.wav", "0.wav", "1.wav", "0.mp3"),
    *("<|AUDIO|>", "<|im_end|>", "\ud83d", "\u2028", "\x85\r", "\ue000", "nan", "false"),
    *("human", "User", "user", "assistant", "system", "tool", *_RAW),
]
_texts = st.sampled_from(_TEXTS) | st.text(max_size=4)
_numbers = st.sampled_from([0, -1, 7, 1e308, 1e24, 10**400, float("nan"), float("-inf"), 1e-320, 0.2, 2_000])
_values = st.recursive(
    _texts | _numbers | st.sampled_from([None, True, False]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def mutant(draw: Any, bases: list[dict[str, Any]]) -> bytes:
    """One line, without its line end unless bytes were put in."""
    row = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, row)
    if draw(st.integers(0, 39)) == 39:
        row = draw(_values)
    text = json.dumps(row, ensure_ascii=draw(st.booleans()))
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    line = text.encode("utf-8", "surrogatepass")
    how = draw(st.sampled_from(["whole"] * 16 + ["cut", "flip", "insert", "doubled"]))
    place = draw(st.integers(0, min(len(line), 2000)))
    if how == "cut":
        return line[:place]
    if how == "flip" and place < len(line):
        return line[:place] + bytes([line[place] ^ draw(st.integers(1, 255))]) + line[place + 1 :]
    if how == "insert":
        extra = st.sampled_from([b"\0", b"\xff", b"\n", b"\r\n", b"\xef\xbb\xbf", b'"', b"{", b"NaN", b" "])
        return line[:place] + draw(extra) + line[place:]
    return line * 2 if how == "doubled" else line


def fuzzed(num_files: int) -> settings:
    """So many files of mutants, the same ones each time."""
    return settings(max_examples=num_files, **REPRODUCIBLE)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested objects and lists."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, inner in items for found in paths_of(inner, (*path, key))]


def _change(draw: Any, row: dict[str, Any]) -> None:
    """Change one place anywhere in ``row``."""
    places = list(_places(row))
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["alike"] * 5 + ["value", "delete", "rename", "add", "wrap"]))
    if how == "alike":  # of the same type: it gets past the checks of types
        kinds = {str: _texts, float: _numbers, bool: st.booleans()}
        holder[key] = draw(kinds.get(type(holder[key]), _values))
    elif how == "value":
        holder[key] = draw(_values)
    elif how == "wrap":
        holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}, [holder[key], holder[key]]]))
    elif how == "delete":
        del holder[key]
    elif isinstance(holder, dict):
        new = draw(st.sampled_from(_KEYS))
        holder[new] = holder.pop(key) if how == "rename" else draw(_values)


def _places(value: Any) -> Any:
    """Every (container, key) below ``value``."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
