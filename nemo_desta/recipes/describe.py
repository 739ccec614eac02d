"""Seed descriptions: one corpus row as one line of text that replaces the audio.

The LLM reads this text instead of the audio when it generates its own training targets (papers: DeSTA2.5-Audio's data
construction; ALARM's corpus in the second dialect). This module never reads the audio.
"""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from math import isfinite
from typing import Any

from nemo_desta.data.row_schema import LONGEST_SECS
from nemo_desta.recipes.languages import ENGLISH, Language

DIALECTS = ("desta25", "alarm")

#: Attributes that are not audible, as shell patterns. ``exact_age`` is ``age`` (or ``*_age``) given as a number: an
#: age group can be heard, an exact age cannot. The LLM must not learn to claim what the audio does not contain.
NOT_AUDIBLE = frozenset(
    {"id", "*_id", "name", "first_name", "last_name", "speaker", "speaker_name", "exact_age"}
    | {"artist", "album", "title", "song_name"}
)


def describe(
    row: Mapping[str, Any],
    dialect: str = "desta25",
    *,
    exclude: Collection[str] = NOT_AUDIBLE,
    language: Language = ENGLISH,
) -> str:
    """The seed description of a manifest row.

    Reads ``id``, ``duration`` (seconds), ``domain``, ``transcript``, ``caption`` (text or list, optional),
    ``attributes`` (name -> value, list of values, or None = unknown), and for conversations ``segments``: a list of
    ``{"start", "end", "transcript", "speaker", "attributes"}`` with ``speakers`` (speaker -> attributes) beside it.
    Speakers are numbered in the order in which they first speak, since their names are not audible.

    ``desta25``: ``[00:00-00:02] spoken text (Key: value, ..., Duration: 2s)``, without text where it is absent or
    unknown. ``alarm``: ``[00:00-00:02] spoken text (duration: 2s, key: value, ...)``, with ``|caption|``
    instead of unknown text (the domain, where the row has no caption). Seconds are rounded, at least 1.
    ``language``: of the names and known values of attributes, and of the words around them.

    Raises ``ValueError``: an unknown dialect, a row without duration, or a row that `check_described` rejects.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
    check_described(row)
    row, duration = language.localize(row), _duration(row)
    attributes = _audible(row.get("attributes"), exclude)
    if row.get("segments"):
        return _conversation(row, duration, attributes, dialect, exclude, language)
    text, captions = _text(row.get("transcript")), _values(row.get("caption"))
    if dialect == "desta25":
        items = captions + _pairs(attributes, language, title=True)
        return _line(_span(0, duration), text, [*items, *_length(duration, language, title=True)])
    if not text:
        domain = str(row.get("domain", "audio"))
        text = f"|{'/'.join(captions) or language.words.domains.get(domain, domain).capitalize()}|"
    return _line(_span(0, duration), text, [*_length(duration, language), *_pairs(attributes, language)])


def check_described(row: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, naming row and field, unless all fields that a description reads have the right type.

    ``duration`` may be missing; it can still be read from the audio file.
    """
    where = f"row {row.get('id')!r:.200}"
    if row.get("duration") is not None:
        _duration(row)
    if not isinstance(row.get("transcript"), str | int | float | None):
        raise _wrong(where, "transcript must be text", row["transcript"])
    _check_value(row.get("caption"), f"{where}: caption")
    _check_attributes(row.get("attributes"), f"{where}: attributes")
    speakers = row.get("speakers")
    if not isinstance(speakers, Mapping | None):
        raise _wrong(where, "speakers must be an object, speaker -> attributes", speakers)
    for speaker, attributes in (speakers or {}).items():
        _check_attributes(attributes, f"{where}: speakers.{speaker}")
    segments = row.get("segments")
    if not isinstance(segments, list | None):
        raise _wrong(where, "segments must be a list of objects", segments)
    for number, segment in enumerate(segments or ()):
        _check_segment(row, segment, where, f"segments[{number}]")


def audible_names(row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE) -> set[str]:
    """Names that occur in the row's description: attributes (of all speakers too), ``transcript``, ``caption``."""
    segments = row.get("segments") or []
    parts = [row, *segments]
    held = {name for name in ("transcript", "caption") if any(_values(part.get(name)) for part in parts)}
    of_speakers = [{"attributes": value} for value in (row.get("speakers") or {}).values()]
    return held.union(*(_audible(part.get("attributes"), exclude) for part in [*parts, *of_speakers]))


def _conversation(
    row: Mapping[str, Any],
    duration: float,
    attributes: dict[str, str],
    dialect: str,
    exclude: Collection[str],
    language: Language,
) -> str:
    """One line per segment in time order, then one line about the whole clip."""
    segments = sorted(
        (_seconds(row, s.get("start"), "segment start"), _seconds(row, s.get("end"), "segment end"), i, s)
        for i, s in enumerate(row["segments"])
    )
    speakers = dict.fromkeys(_speaker(segment) for *_, segment in segments if segment.get("speaker") is not None)
    words, ordinals = language.words, language.words.ordinals
    order = {s: ordinals[n] if n < len(ordinals) else str(n + 1) for n, s in enumerate(speakers)}
    known = {name: _audible(value, exclude) for name, value in (row.get("speakers") or {}).items()}

    lines = []
    for start, end, _, segment in segments:
        text, speaker = _text(segment.get("transcript")), _speaker(segment)
        own = _audible(segment.get("attributes"), exclude)
        if dialect == "desta25":
            items = _pairs({"speaker": order[speaker]}, language, title=True) if speaker is not None else []
            items += _pairs({**known.get(speaker, {}), **own}, language, title=True)
            lines.append(_line(_span(start, end), text, [*items, *_length(end - start, language, title=True)]))
        else:
            head = [] if speaker is None else [words.speaker.format(order[speaker])]
            text = text or f"|{words.domains.get('speech', 'speech').capitalize()}|"
            lines.append(_line(", ".join([_span(start, end), *head, *_pairs(own, language)]), text, []))
    whole = {"number_of_speakers": str(len(order)), **attributes} if order else attributes
    if dialect == "desta25":
        last = [*_pairs(whole, language, title=True), *_length(duration, language, title=True)]
    else:
        each = [
            f"{words.speaker.format(order[s])} {pair}" for s in order for pair in _pairs(known.get(s, {}), language)
        ]
        last = [*_length(duration, language), *_pairs(whole, language), *each]
    return "\n".join([*lines, f"({', '.join(last)})"])


def _line(span: str, text: str, items: Iterable[str]) -> str:
    inside = ", ".join(items)
    return " ".join(part for part in (f"[{span}]", text, f"({inside})" if inside else "") if part)


def _audible(attributes: Mapping[str, Any] | None, exclude: Collection[str]) -> dict[str, str]:
    """Known attributes as text: several values are joined with "/", None and excluded ones are left out."""
    kept, exclude = {}, frozenset(exclude)
    for key, value in (attributes or {}).items():
        is_exact_age = False
        if (key == "age" or key.endswith("_age")) and not isinstance(value, bool):
            is_exact_age = isinstance(value, int | float) or str(value).strip().isdigit()
        if not _is_hidden(key, is_exact_age, exclude):
            kept[key] = "/".join(_values(value))
    return {key: value for key, value in kept.items() if value}


@lru_cache(maxsize=4096)
def _is_hidden(key: str, is_exact_age: bool, exclude: frozenset[str]) -> bool:
    names = (key.lower(), "exact_age") if is_exact_age else (key.lower(),)
    return any(fnmatchcase(name, pattern) for name in names for pattern in exclude)


def _pairs(attributes: Mapping[str, str], language: Language, title: bool = False) -> list[str]:
    """``name: value``; ``title``: the name begins with a capital letter. Unknown names stay as they are."""
    names = language.words.names
    keys = [names.get(key) or (key if title else key.lower()).replace("_", " ") for key in attributes]
    keys = [key[:1].upper() + key[1:] for key in keys] if title else keys
    return [f"{key}: {value}" for key, value in zip(keys, attributes.values(), strict=True)]


def _length(seconds: float, language: Language, title: bool = False) -> list[str]:
    return _pairs({"duration": language.words.seconds.format(_whole(seconds))}, language, title)


def _values(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in _values(one)]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    text = f"{value:g}" if isinstance(value, float) else _text(value)
    return [text] if text else []


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _speaker(segment: Mapping[str, Any]) -> str | None:
    """The speaker as text, like the keys of ``speakers``."""
    return None if segment.get("speaker") is None else str(segment["speaker"])


def _seconds(row: Mapping[str, Any], value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_SECS:
        rule = f"seconds as a number, 0 or more, at most {LONGEST_SECS} (24 hours)"
        raise ValueError(f"row {row.get('id')!r:.200}: {what} is {value!r:.80}; expected {rule}")
    return float(value)


def _duration(row: Mapping[str, Any]) -> float:
    duration = _seconds(row, row.get("duration"), "duration")
    if duration <= 0:
        raise ValueError(f"row {row.get('id')!r:.200}: duration is {duration:g} s; a clip needs more than 0 s")
    return duration


def _check_segment(row: Mapping[str, Any], segment: Any, where: str, name: str) -> None:
    if not isinstance(segment, Mapping):
        raise _wrong(where, f"{name} must be an object", segment)
    start = _seconds(row, segment.get("start"), f"{name}: segment start")
    end = _seconds(row, segment.get("end"), f"{name}: segment end")
    if end <= start:
        raise ValueError(f"{where}: segment ends at {end:g} s, before or at its start {start:g} s ({name})")
    speaker = segment.get("speaker")
    if isinstance(speaker, bool) or not isinstance(speaker, str | int | None):
        raise _wrong(where, f"{name}.speaker must be text", speaker)
    if not isinstance(segment.get("transcript"), str | int | float | None):
        raise _wrong(where, f"{name}.transcript must be text", segment["transcript"])
    _check_attributes(segment.get("attributes"), f"{where}: {name}.attributes")


def _check_attributes(attributes: Any, where: str) -> None:
    if not isinstance(attributes, Mapping | None):
        raise ValueError(f"{where} must be an object, name -> value, found {attributes!r:.80}")
    for name, value in (attributes or {}).items():
        if not isinstance(name, str):
            raise ValueError(f"{where}: names must be text, found {name!r:.80}")
        _check_value(value, f"{where}.{name:.80}")


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    if isinstance(value, (list, tuple)) and depth < 2:
        for one in value:
            _check_value(one, where, depth + 1)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError(f"{where} must be text, a number, yes or no, or a list of these, found {value!r:.80}")


def _wrong(where: str, rule: str, found: Any) -> ValueError:
    return ValueError(f"{where}: {rule}, found {type(found).__name__} {found!r:.80}")


def _whole(seconds: float) -> int:
    return max(1, int(seconds + 0.5))


def _span(start: float, end: float) -> str:
    first = int(start + 0.5)
    last = max(int(end + 0.5), first + 1)
    return f"{first // 60:02d}:{first % 60:02d}-{last // 60:02d}:{last % 60:02d}"
