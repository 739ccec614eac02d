"""Tables joined to a corpus' rows by a key. They are kept on disk, since a table may be as long as the corpus."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.formats import Record
from nemo_desta.recipes.corpora.template import UnknownField, as_key


class Table:
    """Looks up ``records`` by ``key``, a function of their fields; ``many``: several rows may share a key.

    Raises ``CorpusError`` naming the row: a repeated key (unless ``many``), a key without value or of unknown fields.
    """

    def __init__(self, records: Iterable[Record], key: Callable[[Mapping[str, Any]], Any], *, many: bool = False):
        self.columns: list[str] = []
        # "": a temporary database. SQLite keeps it in memory while small, then on disk, and deletes it on close.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        unique = "" if many else "UNIQUE"
        self._database.execute(f"CREATE TABLE rows (position INTEGER PRIMARY KEY, key TEXT {unique}, row TEXT)")
        self._database.execute("BEGIN")
        for where, row, of_file in records:
            self._add(where, {**of_file, **row}, key)
        if many:
            self._database.execute("CREATE INDEX keys ON rows (key)")
        self._database.execute("COMMIT")
        self.rows = lru_cache(4096)(self._rows)

    def _add(self, where: str, fields: dict[str, Any], key: Callable[[Mapping[str, Any]], Any]) -> None:
        self.columns = self.columns or list(fields)
        try:
            value = key(fields)
        except UnknownField as error:
            raise CorpusError(f"{where}: {error}") from None
        if value is None:
            raise CorpusError(f"{where}: no value for the key of this table")
        try:
            self._database.execute("INSERT INTO rows (key, row) VALUES (?, ?)", (as_key(value), json.dumps(fields)))
        except sqlite3.IntegrityError:
            raise CorpusError(f"{where}: key {as_key(value)!r} was seen before in this table") from None
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise CorpusError(f"{where}: {type(error).__name__}: {error}") from None

    def _rows(self, key: str) -> list[dict[str, Any]]:
        found = self._database.execute("SELECT row FROM rows WHERE key = ? ORDER BY position", (key,))
        return [json.loads(row) for (row,) in found]
