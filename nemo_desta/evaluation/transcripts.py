"""Transcripts of the user's rows for the transcript cascade: those of the rows, or by the model's own Whisper.

``transcripts.jsonl`` in the folder holds Whisper's texts, so that a killed run transcribes no clip twice.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Any

from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.jsonl_log import JsonlLog
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.evaluation.sources import Source
from nemo_desta.progress import Progress

logger = logging.getLogger(__name__)

#: Clips that are transcribed, and then written, at a time: as many as Whisper decodes together.
BATCH = 16


def transcripts_of(rows: Iterable[Mapping[str, Any]], how: str | None, source: Source, folder: Path) -> dict[str, str]:
    """Row id -> text that the LLM reads instead of the clip. ``how``: ``given`` (rows without a transcript are left
    out), ``whisper``, or None: no row.

    Raises:
        ConfigError: ``whisper``, and the model has no Whisper with its decoder.
    """
    rows = list(rows)
    if how is None:
        return {}
    if how == "given":
        texts = {row["id"]: row["transcript"] for row in rows if row["transcript"]}
    else:
        heard = _whisper(list(dict.fromkeys(row["audio"] for row in rows)), source, folder)
        texts = {row["id"]: heard[row["audio"]] for row in rows}
    return {row_id: f'Transcript of the recording: "{text}"' for row_id, text in texts.items()}


def _whisper(clips: Sequence[str], source: Source, folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    log = JsonlLog(folder / "transcripts.jsonl")
    try:
        model = str(source.settings.model)
        lines = [loads(line) for line in log.lines()]
        found = {line["clip"]: line["text"] for line in lines if line["model"] == model}
        missing = [clip for clip in clips if clip not in found]
        with Progress("transcripts", len(missing), unit="clips", shown=source.settings.progress) as bar:
            for start in range(0, len(missing), BATCH):
                some = missing[start : start + BATCH]
                new = dict(zip(some, _transcribed(some, source), strict=True))
                for clip, text in new.items():
                    line = {"clip": clip, "model": model, "text": text}
                    log.append((dumps(line, ensure_ascii=False) + "\n").encode())
                found |= new
                bar.update(len(some))
    finally:
        log.close()
    return {clip: found[clip] for clip in clips}


def _transcribed(clips: Sequence[str], source: Source) -> list[str]:
    listener = source.engine.model if source.engine is not None else source.model
    try:
        transcriber = listener.transcriber
    except (ConfigError, ValueError, OSError) as error:
        raise ConfigError(f"rows.transcripts=whisper: {error}") from error
    audio = {}
    for i, clip in enumerate(clips):
        try:
            with row_guard():
                audio[i] = load_audio(clip)
        except RowError as error:  # its row is not answered either
            logger.warning("no transcript of %s: %s", clip, error)
    texts = dict(zip(audio, transcriber(list(audio.values())), strict=True))
    return [texts.get(i, "") for i in range(len(clips))]
