"""Checks rows: their keys and types. Raises a `RowError` for a row that cannot be used.

An ignored key would silently change what is trained. An unknown key in a message or an audio therefore makes the row
bad. At top level it is logged once per file (`KeyTally`), unless it looks like a misspelt key of the format, which
also makes the row bad.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.errors import RowError

Row = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
#: Top-level keys that determine what is trained.
READ_KEYS = ("id", "dataset", "messages", "response", "truncated")
#: Top-level keys that are kept but not read: those of DeSTA-AQA5M, and the provenance written by the recipes.
CARRIED_KEYS = frozenset(
    "seed_description prompt stage prompt_id prompt_kind prompt_requires constraint tasks seed attempt language split "
    "group corpus corpus_version llm llm_revision llm_dtype sampling first_response text_language gates_absent".split()
)
KNOWN_KEYS = CARRIED_KEYS.union(READ_KEYS)
MESSAGE_KEYS = ("role", "content", "audios")
AUDIO_KEYS = ("audio", "text", "duration")
#: Limit of a clip's length, whatever a row states or a small compressed file decodes to.
LONGEST_SECS = 24 * 3600
#: Names in other formats whose spelling is not close to ours.
_MEANT = {
    **{"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "from": "role"},
    **{"value": "content", "transcript": "text", "transcription": "text", "audio_filepath": "audio", "path": "audio"},
    **{"conversations": "messages", "conversation": "messages", "answer": "response", "output": "response"},
    **{"question": "prompt", "instruction": "prompt", "secs": "duration", "seconds": "duration"},
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowRules:
    """What is allowed in addition to the format.

    ``strict_keys``: how an unknown key at top level is handled. None: it is logged once per file and kept, and makes
    the row bad if it is a misspelt or misplaced key of the format. True: it makes the row bad. False: it is kept
    silently, for rows with the user's own fields. ``audio_role``: one more role (`PromptConfig`). ``read``: top-level
    keys that are read.
    """

    strict_keys: bool | None = None
    audio_role: str | None = None
    read: tuple[str, ...] = READ_KEYS

    @property
    def roles(self) -> tuple[str, ...]:
        return ROLES if self.audio_role is None else (*ROLES, self.audio_role)


TRAINING = RowRules()


def check_row(row: Any, rules: RowRules = TRAINING) -> Row:
    """The row, its ``id`` as text.

    Raises:
        RowError: wrong fields (``schema``), or a key that is not read (``unknown_key``).
    """
    if not isinstance(row, Mapping):
        raise _wrong("a row is a JSON object", row)
    row = {**row, "id": row_id(row)}
    name = f"row '{row['id']:.200}'"
    check_keys(row, rules, name)
    if not isinstance(row.get("dataset", ""), str):
        raise _wrong(f"{name}: 'dataset' must be a string", row, "dataset")
    if not _is_text(row.get("response")):
        raise _wrong(f"{name}: 'response' must be a non-empty string", row, "response")
    if not isinstance(row.get("truncated", False), bool | None):
        raise _wrong(f"{name}: 'truncated' must be true or false", row, "truncated")
    for key in ("prompt", "seed_description"):
        if not isinstance(row.get(key), str | None):
            raise _wrong(f"{name}: '{key}' must be a string or null", row, key)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong(f"{name}: 'messages' must be a non-empty list", row, "messages")
    for number, message in enumerate(messages):
        _check_message(message, rules, f"{name}, message {number}")
    if messages[-1]["role"] == "assistant":
        raise RowError(
            "schema", f"{name}: the last message is the assistant's; the answer to learn belongs into 'response'"
        )
    if rules.strict_keys is not False:
        _check_misplaced(row, rules, name)
    return row


def row_id(row: Mapping[str, Any]) -> str:
    """The row's id as text; whole numbers are accepted."""
    found = row.get("id")
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not _is_text(found):
        raise _wrong("'id' must be a non-empty string or a whole number", row, "id")
    return found


def check_keys(row: Mapping[str, Any], rules: RowRules, name: str) -> None:
    """Raise `RowError` for top-level keys that ``rules`` do not allow."""
    if rules.strict_keys is False:
        return
    for key in unknown_keys(row, rules):
        if rules.strict_keys:
            raise RowError(
                "unknown_key",
                f"{name}: unknown key '{key:.60}'.{_hint(key, rules.read)} strict_keys: false keeps your own fields",
            )
        if (meant := _meant(key, rules.read)) is not None and meant not in row:
            raise RowError(
                "unknown_key",
                f"{name}: unknown key '{key:.60}', and no '{meant}'. Rename it; if it is a field of your own, "
                "strict_keys: false keeps it",
            )


def unknown_keys(row: Mapping[str, Any], rules: RowRules = TRAINING) -> list[str]:
    """Top-level keys of a row that are not in the format."""
    return [key for key in row if key not in KNOWN_KEYS and key not in rules.read]


class KeyTally:
    """Logs each unknown top-level key once per file, and counts the rows that have it."""

    def __init__(self, rules: RowRules) -> None:
        self.rules = rules
        self.counts: Counter[tuple[str, str]] = Counter()  # (file, key)

    def add(self, row: Mapping[str, Any], where: str) -> None:
        """Add a checked row; ``where``: its ``file:line``."""
        if self.rules.strict_keys is not None:
            return
        for key in unknown_keys(row, self.rules):
            file = where.rpartition(":")[0]
            self.counts[file, key] += 1
            if self.counts[file, key] == 1:
                meant = _meant(key, KNOWN_KEYS.union(self.rules.read))
                logger.warning(
                    "%s: unknown key '%.60s', kept and not read.%s strict_keys: false says that it is a field of your "
                    "own, strict_keys: true refuses such rows",
                    *(where, key, f" Did you mean '{meant}'?" if meant else ""),
                )

    def __str__(self) -> str:
        keys: Counter[str] = Counter()
        for (_, key), count in self.counts.items():
            keys[key] += count
        return ", ".join(f"'{key:.60}' in {count:,} rows" for key, count in keys.most_common())


def _check_message(message: Any, rules: RowRules, where: str) -> None:
    if not isinstance(message, Mapping):
        raise _wrong(f"{where}: must be an object", message)
    _refuse_unknown(message, MESSAGE_KEYS, where)
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise _wrong(f"{where}: '{key}' must be a string", message, key)
    if message["role"] not in rules.roles:
        raise RowError("schema", f"{where}: role '{message['role']:.60}'.{_hint(message['role'], rules.roles)}")
    audios = message.get("audios")
    if not isinstance(audios, list | None):
        raise _wrong(f"{where}: 'audios' must be a list", message, "audios")
    for number, entry in enumerate(audios or ()):
        _check_audio(entry, f"{where}, audio {number}")


def _check_audio(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise _wrong(f"{where}: must be an object", entry)
    _refuse_unknown(entry, AUDIO_KEYS, where)
    if not _is_text(entry.get("audio")):
        raise _wrong(f"{where}: 'audio' must be a path", entry, "audio")
    if not isinstance(entry.get("text"), str | None):
        raise _wrong(f"{where}: 'text' must be a transcript or null", entry, "text")
    duration = entry.get("duration")
    if isinstance(duration, bool) or not isinstance(duration, int | float | None):
        raise _wrong(f"{where}: 'duration' must be seconds", entry, "duration")
    if not 0 <= (duration or 0) <= LONGEST_SECS:
        raise _wrong(f"{where}: 'duration' must be seconds, at most {LONGEST_SECS} (24 hours)", entry, "duration")


def _check_misplaced(row: Mapping[str, Any], rules: RowRules, name: str) -> None:
    """Reject top-level keys that belong inside the messages."""
    for key in ("audio", "audios"):
        if row.get(key) and not any(message.get("audios") for message in row["messages"]):
            raise RowError(
                "unknown_key",
                f"{name}: '{key}' beside 'messages' is not read; an audio belongs into the 'audios' of its message",
            )
    if row.get("system") and "system" not in rules.read and row["messages"][0]["role"] != "system":
        raise RowError(
            "unknown_key", f"{name}: 'system' beside 'messages' is not read; make it the first message, of role system"
        )


def _refuse_unknown(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in found:
        if key not in known:
            raise RowError("unknown_key", f"{where}: unknown key '{key:.60}'.{_hint(key, known)}")


def _meant(name: str, known: Collection[str]) -> str | None:
    """The known name that ``name`` most likely means."""
    if (meant := _MEANT.get(name.lower())) in known:
        return meant
    return next(iter(difflib.get_close_matches(name.lower()[:60], known, n=1, cutoff=0.8)), None)


def _hint(name: str, known: Iterable[str]) -> str:
    """A suggestion, and the known names."""
    meant = _meant(name, known := tuple(known))
    return nearest(name[:60], known) if meant is None else f" Did you mean '{meant}'? Known: {', '.join(known)}."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _wrong(rule: str, found: Any, key: str | None = None) -> RowError:
    """A `RowError` with the rule and the value found (the whole, or under ``key``)."""
    if key is None:
        return RowError("schema", f"{rule}, found {type(found).__name__}")
    return RowError("schema", f"{rule}, " + (f"found {found[key]!r:.80}" if key in found else "but it is missing"))
