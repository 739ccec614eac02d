"""The interface of a row source: random access to checked rows and to their audio files."""

from typing import NamedTuple, Protocol

from nemo_desta.data.audio_io import AudioFile
from nemo_desta.data.row_schema import RowRules
from nemo_desta.data.rows import Row


class RowSource(Protocol):
    """Rows by number; usable in forked and spawned workers. ``rules``: the rules that its rows are checked by."""

    name: str
    rules: RowRules

    def __len__(self) -> int: ...

    def row(self, i: int) -> Row:
        """Checked row ``i``. Raises RowError."""
        ...

    def where(self, i: int) -> str:
        """The location of row ``i``, for messages."""
        ...

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        """One file per audio of the row, in reading order. Raises AudioError."""
        ...


class WeightedSource(NamedTuple):
    """A source and its share of the mix. None: every row once per epoch."""

    source: RowSource
    share: float | None
