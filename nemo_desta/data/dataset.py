"""Turns a planned batch into tensors: reads rows, renders prompts, loads audio. Runs in the loader's workers.

Letters: B rows, L text positions, A clips of all rows, S samples.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from nemo_desta.core.prompting import Draw, PromptBuilder
from nemo_desta.data.audio_io import load_audio, silence
from nemo_desta.data.costs import RowRef, check_target
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import audio_entries
from nemo_desta.data.sampler import PlannedBatch, bad_row
from nemo_desta.errors import RowError, row_guard
from nemo_desta.perception.feature_cache import clip_key
from nemo_desta.types import Rates

Batch = dict[str, Any]

#: Row id of the filler in a batch without usable rows.
FILLER_ID = "<filler>"


class LoadedRow(NamedTuple):
    """``ids``: with one AUDIO_SLOT per clip. ``clips``: float32 (S,) or (S, K) each, in the order of the slots."""

    row_id: str
    dataset: str
    ids: list[int]
    prompt_len: int
    clips: list[np.ndarray]


@dataclass(eq=False)
class RowDataset(Dataset[Batch]):
    """Maps a `PlannedBatch` to a batch.

    A row that cannot be used is excluded and listed in ``batch["bad_rows"]``. A batch without a usable row holds one
    filler: a prompt with half a second of silence and no target. Every parameter and every rank then takes part in
    the step, and nothing is learned from it.

    Args:
        sampling_rate: of the clips, or several (`Rates`).
        seed: for transcript dropout and noise in training; None for validation (transcripts unchanged).
        hash_audio: add ``audio_keys``, the hash of each clip's samples, for a feature cache.
    """

    sources: Sequence[RowSource]
    prompts: PromptBuilder
    _: KW_ONLY
    sampling_rate: Rates
    max_target_tokens: int | None = None
    seed: int | None = None
    hash_audio: bool = False

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        loaded, bad_rows = [], list(planned.bad_rows)
        for ref in planned.rows:
            try:
                with row_guard(self.sources[ref.source].where(ref.index)):
                    loaded.append(self._load(ref, planned.epoch))
            except RowError as error:
                bad_rows.append(bad_row(self.sources[ref.source], ref.index, error))
        loaded, num_rows = loaded or [self._filler()], len(loaded)
        batch = collate(loaded)
        if self.hash_audio:
            batch["audio_keys"] = [clip_key(clip) for row in loaded for clip in row.clips]
        batch["bad_rows"] = bad_rows
        batch["num_rows"] = num_rows
        batch["position"] = (planned.epoch, planned.index, planned.is_last)
        return batch

    def _load(self, ref: RowRef, epoch: int) -> LoadedRow:
        source = self.sources[ref.source]
        row = source.row(ref.index)
        draw = None if self.seed is None else Draw(self.seed, epoch, row["id"])
        example = self.prompts.example(row, draw=draw)
        check_target(example, self.max_target_tokens)
        clips = [
            load_audio(file, self.sampling_rate, duration=entry.get("duration"))
            for file, entry in zip(source.audio_files(ref.index, row), audio_entries(row), strict=True)
        ]
        return LoadedRow(row["id"], row.get("dataset") or source.name, example.ids, example.prompt_len, clips)

    def _filler(self) -> LoadedRow:
        ids, _ = self.prompts.prompt([{"role": "user", "content": "", "audios": [{"audio": "silence"}]}])
        return LoadedRow(FILLER_ID, FILLER_ID, ids, len(ids), [silence(0.5, self.sampling_rate)])


def collate(rows: Sequence[LoadedRow]) -> Batch:
    """Collate rows to a batch (documented in the package's docstring).

    ``audio`` (A, S), or (A, S, K) for several rates, float32 and ``input_ids`` (B, L) int64 are zero-padded on the
    right; ``audio_lens`` (A,) and ``input_lens`` (B,) give their lengths without padding, ``prompt_lens`` (B,) the
    start of the supervised target.
    """
    audio, audio_lens = pad([clip for row in rows for clip in row.clips], torch.float32)
    input_ids, input_lens = pad([row.ids for row in rows], torch.int64)
    return {
        "audio": audio,
        "audio_lens": audio_lens,
        "input_ids": input_ids,
        "input_lens": input_lens,
        "prompt_lens": torch.tensor([row.prompt_len for row in rows], dtype=torch.int64),
        "row_ids": [row.row_id for row in rows],
        "datasets": [row.dataset for row in rows],
        "bad_rows": [],
    }


def pad(rows: Sequence[Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences to (N, longest, ...) with zeros on the right; also returns their lengths (N,)."""
    lens = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    inner = np.shape(rows[0])[1:] if len(rows) else ()
    padded = torch.zeros(len(rows), max((len(row) for row in rows), default=0), *inner, dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return padded, lens
