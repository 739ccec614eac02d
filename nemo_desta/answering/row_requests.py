"""Rows to be answered: lines of a file, in full or short form, become requests."""

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

from nemo_desta.answering.audio_embeddings import ChatModel
from nemo_desta.data.audio_io import AudioRoots, count_samples
from nemo_desta.data.row_schema import KeyTally, RowRules, check_keys, row_id, unknown_keys
from nemo_desta.data.rows import JsonlIndex, Row, check_row, load_object
from nemo_desta.errors import RowError, row_guard

CHARACTERS_PER_TOKEN = 4

#: Top-level keys that decide about an answer: of rows with messages, and of short rows.
_READ = {
    "full": ("id", "dataset", "messages", "system"),
    "short": ("id", "dataset", "audio", "prompt", "text", "system"),
}


class RowRequest(NamedTuple):
    """A row to be answered. ``cost``: estimated positions of its prompt."""

    id: str
    where: str
    messages: list[dict[str, Any]]
    cost: int


@dataclass(eq=False)
class RowRequests:
    """The rows of an index that have no answer yet, in order.

    Args:
        done: names of the existing answers. reject: called with name, location and error of a faulty row.
        system, strict_keys: as in `answer_rows`.
    """

    index: JsonlIndex
    model: ChatModel
    roots: AudioRoots
    _: KW_ONLY
    done: Container[str]
    reject: Callable[[str | None, str, RowError], None]
    system: str | None = None
    strict_keys: bool | None = None

    def __post_init__(self) -> None:
        self.num_before = 0  # rows read that have an answer
        self._seen: set[str] = set()
        role = self.model.prompts.audio_role
        self._keys = {form: KeyTally(RowRules(self.strict_keys, role, read)) for form, read in _READ.items()}

    @property
    def unknown_keys(self) -> str:
        """Keys of the rows read so far that are not used, with the number of rows that hold them."""
        return ", ".join(filter(None, map(str, self._keys.values())))

    def __iter__(self) -> Iterator[RowRequest]:
        for i in range(len(self.index)):
            where, name = self.index.where(i), None
            try:
                with row_guard():
                    row = load_object(self.index.line(i))
                    own = row_id(row)
                    # questions about one clip may share an id: a repeated one becomes id#2, id#3
                    names = itertools.chain([own], (f"{own}#{n}" for n in itertools.count(2)))
                    name = next(one for one in names if one not in self._seen)
                    self._seen.add(name)
                    if name in self.done:
                        self.num_before += 1
                        continue
                    keys = self._keys["full" if "messages" in row else "short"]
                    messages = _messages(row, self.model.audio_locator_tag, self.system, keys.rules)
                    request = RowRequest(name, where, *self._resolve(messages, row))
                    keys.add(row, where)
            except RowError as error:
                self.reject(name, where, error)
                continue
            yield request

    def _resolve(self, messages: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> tuple[list[dict], int]:
        """The messages with real files as audios, and their estimated positions."""
        found, cost = [], 0
        for message in messages:
            audios = []
            for audio in message.get("audios") or ():
                path = self.roots.resolve(audio["audio"], dataset=row.get("dataset"))
                audios.append({"audio": path, "text": audio.get("text"), "duration": audio.get("duration")})
                cost += self.model.num_audio_tokens(count_samples(path, self.model.sampling_rate))
            found.append({"role": message["role"], "content": message["content"], "audios": audios})
            cost += len(message["content"]) // CHARACTERS_PER_TOKEN
        return found, cost


def _messages(row: Row, tag: str, system: str | None, rules: RowRules) -> list[dict[str, Any]]:
    """The row's messages, also of a short row; ``system`` before them if they have no system message."""
    name = f"row '{row['id']!s:.200}'"
    if not isinstance(row.get("system"), str | None):
        raise RowError("schema", f"{name}: 'system' must be a text or null, found {row['system']!r:.80}")
    messages = row["messages"] if "messages" in row else _short(row, tag, rules, name)
    messages = check_row({**row, "messages": messages, "response": "not read"}, rules)["messages"]
    if (row.get("system") or system) and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": row.get("system") or system}, *messages]
    return messages


def _short(row: Row, tag: str, rules: RowRules, name: str) -> list[dict[str, Any]]:
    """The message of a short row.

    A row without ``audio`` must not have an unknown key, which could be the audio: an answer without its audio looks
    like any other answer.
    """
    check_keys(row, rules, name)
    if "audio" not in row and rules.strict_keys is not False and (unknown := unknown_keys(row, rules)):
        raise RowError(
            "unknown_key",
            f"{name}: unknown key '{unknown[0]:.60}', and no 'audio'. Rename it if it is the audio; a row about text "
            'alone with fields of your own says "audio": null',
        )
    if not isinstance(row.get("prompt"), str):
        raise RowError("schema", f"{name}: 'messages', or 'prompt' and 'audio', must be there")
    audios, texts = _as_list(row.get("audio")), _as_list(row.get("text"))
    if texts and len(texts) != len(audios):
        raise RowError("schema", f"{name}: {len(texts)} texts for {len(audios)} audios")
    entries = [{"audio": a, "text": t} for a, t in itertools.zip_longest(audios, texts)]
    content = row["prompt"] if tag in row["prompt"] else f"{tag}\n" * len(entries) + row["prompt"]
    return [{"role": "user", "content": content, "audios": entries}]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
