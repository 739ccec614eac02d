"""The settings of attribute tasks, ``rows.attributes``: names, name -> settings, or a YAML file that holds either."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError

_NAME = re.compile(r"\w[\w .-]*")  # it is also the name of a folder


@dataclass(frozen=True)
class Attribute:
    """``question``: null makes one from the values. ``field``: path of the true value with dots for nesting; null: see
    `value_of`. ``values``: the values that an answer may name; default all values of the rows. ``aliases``: value ->
    further wordings, besides those of `known_aliases`."""

    question: str | None = None
    field: str | None = None
    values: list[str] | None = None
    aliases: dict[str, list[str]] | None = None


def read_attributes(given: Any) -> dict[str, Attribute]:
    """Name -> settings, from what ``rows.attributes`` may be. Numbers among values and aliases become text.

    Raises:
        ConfigError: another form, an unknown key, an invalid name. FileNotFoundError: no such file.
    """
    where = "rows.attributes"
    if isinstance(given, str) and given.endswith((".yaml", ".yml")):
        given, where = _of_file(Path(given)), given
    if given is None:
        return {}
    if not isinstance(given, list | Mapping):
        raise ConfigError(f"{where} must be names, name -> settings, or a YAML file, found {given!r:.80}")
    wanted = given if isinstance(given, Mapping) else dict.fromkeys(map(str, given))
    for name in wanted:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: an attribute's name is letters, digits, '_', '-' and '.', found {name!r:.80}")
    return {name: _attribute(settings, f"{where}.{name}") for name, settings in wanted.items()}


def _attribute(settings: Any, where: str) -> Attribute:
    if isinstance(settings, Mapping):
        settings = dict(settings)
        if isinstance(settings.get("values"), list):
            settings["values"] = [_text(value, f"{where}.values") for value in settings["values"]]
        if isinstance(settings.get("aliases"), Mapping):
            settings["aliases"] = {
                _text(value, f"{where}.aliases"): [
                    _text(word, f"{where}.aliases.{value}") for word in (words if isinstance(words, list) else [words])
                ]
                for value, words in settings["aliases"].items()
            }
    return parse(Attribute, settings, where=where)


def _text(value: Any, where: str) -> Any:
    """Numbers as text. YAML reads yes, no, on and off as booleans: the text is lost, so they are errors."""
    if isinstance(value, bool) or value is None:
        raise ConfigError(f"'{where}' holds {value}; put the word in quotation marks ('yes', 'no', 'null', 'true')")
    return str(value) if isinstance(value, int | float) else value


def _of_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"rows.attributes: no file '{path}'")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML in UTF-8 ({' '.join(str(error).split())})") from None
