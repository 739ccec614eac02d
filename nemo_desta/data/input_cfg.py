"""DeSTA rows in NeMo: importing this module registers ``type: desta`` in NeMo's own ``input_cfg`` parser.

Our loader opens the same entries itself (`nemo_desta.data.sources`), because it needs rows by number. This module is
for NeMo code that reads conversations from an ``input_cfg``: stock SALM, its data module, its tools.
"""

import logging
import random
import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field

from lhotse import CutSet, Recording
from lhotse.dataset.dataloading import resolve_seed
from nemo.collections.common.data.lhotse.cutset import data_type_parser
from nemo.collections.common.data.lhotse.text_adapters import AudioTurn, NeMoMultimodalConversation, TextTurn
from omegaconf import DictConfig

from nemo_desta.core.prompting import place_audios
from nemo_desta.data.audio_io import AudioFile, TarSlice
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import Row
from nemo_desta.data.sources import open_source
from nemo_desta.errors import RowError, row_guard

logger = logging.getLogger(__name__)

ROW_LOCATOR_TAG = "<|AUDIO|>"


@data_type_parser("desta")
def read_desta(config: DictConfig) -> tuple[CutSet, bool]:
    """Parser of a ``type: desta`` entry: conversations, endlessly repeated unless ``force_finite``.

    Keys of an entry are those of `nemo_desta.data.sources`, with ``audio_roots`` on the entry itself.
    """
    conversations = DestaConversations(
        open_source(config),
        audio_locator_tag=config.get("audio_locator_tag") or ROW_LOCATOR_TAG,
        token_equivalent_duration=config.get("token_equivalent_duration"),
        shuffle=config.get("shuffle", False),
        seed=config.get("shard_seed", "trng"),
    )
    cuts = CutSet(conversations)
    finite = config.get("force_finite", False) or config.get("metadata_only", False)
    return (cuts if finite else cuts.repeat(preserve_id=True)), True


@dataclass(eq=False)
class DestaConversations:
    """Rows as conversations, the row itself under ``custom["row"]``. A bad row is logged and skipped.

    Args:
        seed: as NeMo's ``shard_seed``: a number, "trng" or "randomized"; read when an iteration starts, in the worker.
    """

    source: RowSource
    _: KW_ONLY
    audio_locator_tag: str
    token_equivalent_duration: float | None
    shuffle: bool
    seed: int | str
    _passes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[NeMoMultimodalConversation]:
        order = list(range(len(self.source)))
        if self.shuffle:
            random.Random(resolve_seed(self.seed) + self._passes).shuffle(order)
        self._passes += 1
        for i in order:
            try:
                with row_guard():
                    row = self.source.row(i)
                    conversation = self._conversation(row, self.source.audio_files(i, row))
            except RowError as error:
                logger.warning("bad row (%s), %s: %s", self.source.where(i), error.reason, error)
                continue
            yield conversation

    def _conversation(self, row: Row, files: list[AudioFile]) -> NeMoMultimodalConversation:
        messages, audios, mark = place_audios(row["messages"], ROW_LOCATOR_TAG)
        turns: list[TextTurn | AudioTurn] = []
        for message in messages:
            pieces = re.split(f"{mark}([0-9]+){mark}", message["content"])
            for order, piece in enumerate(pieces):
                if order % 2:
                    file, name = files[int(piece)], f"{row['id']}-{piece}"
                    is_slice = isinstance(file, TarSlice)
                    audio = Recording.from_bytes(file.read(), name) if is_slice else Recording.from_file(file, name)
                    text = audios[int(piece)].get("text")
                    turns.append(AudioTurn(audio.to_cut(), message["role"], self.audio_locator_tag, text))
                elif piece.strip():
                    turns.append(TextTurn(piece.strip(), message["role"]))
        turns.append(TextTurn(row["response"], "assistant"))
        return NeMoMultimodalConversation(row["id"], turns, self.token_equivalent_duration, custom={"row": row})
