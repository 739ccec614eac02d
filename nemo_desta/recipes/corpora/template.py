"""Templates of a card: ``"{speaker}-{text|sentence}"`` makes a value from the fields of one metadata row.

``{name}`` is a field, ``{table.column}`` a column of a joined table (or a nested field), ``{name?}`` may be absent,
``{name|filter|filter}`` applies filters. A template of a single field returns the field's own value, number or list;
otherwise the result is text. If a field has no value (None, empty), the whole template has none: None means "not
known". A text without braces is a constant.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.errors import CorpusError

#: A compiled template: record -> value. Raises `UnknownField`.
Template: TypeAlias = Callable[[Mapping[str, Any]], Any]

#: Latin-1 control characters that should be Windows-1252 punctuation (quotes, dashes), as in MELD's tables.
_WINDOWS = {code: bytes([code]).decode("cp1252", errors="ignore") or None for code in range(0x80, 0xA0)}

FILTERS: dict[str, Callable[[str], Any]] = {
    "stem": lambda text: PurePosixPath(text).stem,  # a/b.wav -> b
    "lower": str.lower,
    "sentence": lambda text: text[:1].upper() + text[1:].lower(),  # HELLO THERE -> Hello there
    "words": lambda text: text.replace("_", " "),  # a_b -> a b
    "list": lambda text: [part.strip() for part in text.split(",") if part.strip()],  # "a,b" -> two values
    "windows": lambda text: text.translate(_WINDOWS),
}

_FIELD = re.compile(r"\{([^{}]*)\}")


class UnknownField(ConfigError):
    """A template names a field that the row does not have."""


def compile_value(value: Any, *, where: str) -> Template:
    """A card's value as a function of a record: a template, a list of templates (None left out), or a constant.

    Raises ``CorpusError`` for an unknown filter or stray braces; ``where`` names the card's key.
    """
    if isinstance(value, str):
        return _template(value, where)
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


def _template(text: str, where: str) -> Template:
    first, *pieces = _FIELD.split(text)  # a text, then a field and a text for each pair of braces
    if any("{" in literal or "}" in literal for literal in (first, *pieces[1::2])):
        raise CorpusError(f"{where}: a brace without its partner in {text!r}; a field is written {{name}}")
    fields = [_field(inside, where) for inside in pieces[::2]]
    if len(fields) == 1 and not first and not pieces[1]:
        return fields[0][0]

    def fill(record: Mapping[str, Any]) -> str | None:
        texts = [first]
        for (field, optional), literal in zip(fields, pieces[1::2], strict=True):
            value = field(record)
            if value is None and not optional:
                return None
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            texts += ["" if value is None else shown, literal]
        return "".join(texts).strip() or None

    return fill


def _field(inside: str, where: str) -> tuple[Template, bool]:
    """``name?|filter|filter`` of one pair of braces, and whether it is optional."""
    name, *filters = (part.strip() for part in inside.split("|"))
    optional, name = name.endswith("?"), name.removesuffix("?")
    path = name.split(".")
    if not name:
        raise CorpusError(f"{where}: empty braces {{{inside}}}; a field is written {{name}}")
    for one in filters:
        if one not in FILTERS:
            raise CorpusError(f"{where}: unknown filter '{one}' in {{{inside}}}.{nearest(one, FILTERS)}")

    def value_of(record: Mapping[str, Any]) -> Any:
        value: Any = record
        for part in (name,) if name in record else path:
            if not isinstance(value, Mapping) or part not in value:
                if optional:
                    return None
                raise UnknownField(f"no field '{name}'.{nearest(name, _names(record))}")
            value = value[part]
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "" or value == []:
            return None
        for one in filters:
            convert = FILTERS[one]
            value = [convert(str(item)) for item in value] if isinstance(value, list) else convert(str(value))
        return value

    return value_of, optional


def _names(record: Mapping[str, Any]) -> list[str]:
    """Fields of a record; fields of joined tables as ``table.column``."""
    names = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    return names
