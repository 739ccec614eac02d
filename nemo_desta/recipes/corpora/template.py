"""Templates of a card: ``"{speaker}-{text|sentence}"`` makes a value from the fields of one metadata row.

``{name}`` is a field, ``{table.column}`` a column of a joined table (or a nested field), ``{name?}`` may be absent,
``{name|filter|filter}`` applies filters. A template of a single field returns the field's own value, number or list;
otherwise the result is text. If a field has no value (None, empty), the whole template has none: None means "not
known". A text without braces is a constant.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.recipes.corpora.errors import CorpusError

#: Latin-1 control characters that should be Windows-1252 punctuation (quotes, dashes), as in MELD's tables.
_WINDOWS = {code: bytes([code]).decode("cp1252", errors="ignore") or None for code in range(0x80, 0xA0)}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].lower()


FILTERS: dict[str, Callable[[str], Any]] = {
    "stem": lambda text: PurePosixPath(text).stem,  # a/b.wav -> b
    "lower": str.lower,
    "sentence": _sentence,  # HELLO THERE -> Hello there
    "words": lambda text: text.replace("_", " "),  # a_b -> a b
    "list": lambda text: [part.strip() for part in text.split(",") if part.strip()],  # "a,b" -> two values
    "windows": lambda text: text.translate(_WINDOWS),
}

_FIELD = re.compile(r"\{([^{}]*)\}")


class UnknownField(Exception):
    """A template names a field that the row does not have."""

    def __init__(self, name: str, record: Mapping[str, Any]):
        super().__init__(name)
        self._name, self._record = name, record

    def __str__(self) -> str:
        return f"no field '{self._name}'.{nearest(self._name, _names(self._record))}"


class Template:
    """One compiled template. ``template(record)`` gives its value; raises `UnknownField`."""

    def __init__(self, text: str, *, where: str):
        """Raises ``CorpusError`` for an unknown filter or stray braces; ``where`` names the card's key."""
        self.text = text
        self._parts: list[str | _Field] = []
        end = 0
        for match in _FIELD.finditer(text):
            self._literal(text[end : match.start()], where)
            self._parts.append(_Field(match[1], where))
            end = match.end()
        self._literal(text[end:], where)
        self._single = self._parts[0] if len(self._parts) == 1 and isinstance(self._parts[0], _Field) else None

    def __call__(self, record: Mapping[str, Any]) -> Any:
        if self._single is not None:
            return self._single(record)
        texts = []
        for part in self._parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            value = part(record)
            if value is None and not part.optional:
                return None
            texts.append(
                "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            )
        return "".join(texts).strip() or None

    def _literal(self, text: str, where: str) -> None:
        if "{" in text or "}" in text:
            raise CorpusError(f"{where}: a brace without its partner in {self.text!r}; a field is written {{name}}")
        if text:
            self._parts.append(text)


def compile_value(value: Any, *, where: str) -> Callable[[Mapping[str, Any]], Any]:
    """A card's value as a function of a record: a template, a list of templates (None left out), or a constant."""
    if isinstance(value, str):
        return Template(value, where=where)
    if isinstance(value, list):
        parts = [compile_value(part, where=f"{where}[{i}]") for i, part in enumerate(value)]
        return lambda record: [found for part in parts if (found := part(record)) is not None] or None
    if isinstance(value, (int, float)):
        return lambda record: value
    raise CorpusError(f"{where}: expected a text such as '{{column}}', a number or a list of texts, found {value!r}")


def fields_of(value: Any) -> set[str]:
    """Names of the row's fields that the templates in ``value`` (also a list or mapping) read."""
    if isinstance(value, str):
        return {match[1].split("|")[0].strip().removesuffix("?").split(".")[0] for match in _FIELD.finditer(value)}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(fields_of, parts))


def as_key(value: Any) -> str:
    """The key of a value in a card's value map: text, whole numbers without a point, true and false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


class _Field:
    """``name?|filter|filter`` of one pair of braces."""

    def __init__(self, inside: str, where: str):
        name, *filters = (part.strip() for part in inside.split("|"))
        self.optional = name.endswith("?")
        self.name = name.removesuffix("?")
        if not self.name:
            raise CorpusError(f"{where}: empty braces {{{inside}}}; a field is written {{name}}")
        self._path = self.name.split(".")
        for one in filters:
            if one not in FILTERS:
                raise CorpusError(f"{where}: unknown filter '{one}' in {{{inside}}}.{nearest(one, FILTERS)}")
        self._filters = [FILTERS[one] for one in filters]

    def __call__(self, record: Mapping[str, Any]) -> Any:
        try:
            value = record[self.name] if self.name in record else self._nested(record)
        except UnknownField:
            if not self.optional:
                raise
            return None
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "" or value == []:
            return None
        for one in self._filters:
            value = _each(one, value)
        return value

    def _nested(self, record: Mapping[str, Any]) -> Any:
        value: Any = record
        for name in self._path:
            if not isinstance(value, Mapping) or name not in value:
                raise UnknownField(self.name, record)
            value = value[name]
        return value


def _each(function: Callable[[str], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [function(str(one)) for one in value]
    return function(str(value))


def _names(record: Mapping[str, Any]) -> list[str]:
    """Fields of a record; fields of joined tables as ``table.column``."""
    names = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    return names
