"""What a source of rows is: random access to checked rows and to the audio files behind them."""

from typing import NamedTuple, Protocol

from nemo_desta.data.audio_io import AudioFile
from nemo_desta.data.row_schema import RowRules
from nemo_desta.data.rows import Row


class RowSource(Protocol):
    """Rows by number; usable in forked and spawned workers. ``rules``: what its rows were checked by."""

    name: str
    rules: RowRules

    def __len__(self) -> int: ...

    def row(self, i: int) -> Row:
        """Checked row ``i``. Raises RowError."""
        ...

    def where(self, i: int) -> str:
        """Where row ``i`` stands, for a person."""
        ...

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        """One file per audio of the row, in reading order. Raises AudioError."""
        ...


class WeightedSource(NamedTuple):
    """A source and its share of the mix; None: every row once per epoch."""

    source: RowSource
    share: float | None
