"""Twenty global batches of ragged rows with one, two and no audio, the same whoever asks; each in two halves.

A layout gets the halves as it needs them: together, one after the other (accumulation), or one per data-parallel rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.dataset import Batch, LoadedRow, collate
from nemo_desta.testing.models import tiny_config

NUM_STEPS = 20
#: Clips of each row of the two halves, by step modulo 4: no audio in a half, one clip for many ranks, none at all.
CLIPS = (((1, 2, 0), (1, 1)), ((2, 0, 1), (0, 0)), ((1,), (0, 2, 1)), ((0,), (0, 1)))
WORDS = "a dog barks twice while a calm voice counts from one to seven in the rain".split()


def parts_config(
    folder: Path, *, kind: str = "qwen3", llm: Mapping[str, Any] | None = None, **model: Any
) -> dict[str, Any]:
    """NeMo's model section for the comparison: a window projector, no dropout, AdamW with a large eps.

    ``llm``: values of the LLM's config.
    """
    config = tiny_config(folder, kind=kind, **(llm or {}))
    config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 3.0e-3, "eps": 1.0e-6, "weight_decay": 0.01}
    config["lr_scheduler"] = {
        "_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing",
        "warmup_steps": 3,
        "min_lr": 0.0,
        "max_steps": NUM_STEPS,
    }
    return {**config, **model}


def halves(prompts: PromptBuilder, step: int) -> tuple[list[LoadedRow], list[LoadedRow]]:
    """The rows of global batch ``step``."""
    rng = np.random.default_rng(step)
    return tuple(
        [_row(prompts, rng, f"{step}-{half}-{row}", clips) for row, clips in enumerate(clips_of_rows)]
        for half, clips_of_rows in enumerate(CLIPS[step % len(CLIPS)])
    )


def global_batch(prompts: PromptBuilder, step: int, split: str, rank: int = 0) -> list[Batch]:
    """The micro-batches of one rank at ``step``; ``split``: whole, accumulate, data or first.

    "first": the first data-parallel rank has all rows, the others have a short text without targets.
    """
    first, second = halves(prompts, step)
    rows = {
        "whole": [first + second],
        "accumulate": [first, second],
        "data": [(first, second)[rank]],
        "first": [first + second if rank == 0 else [_filler(prompts)]],
    }[split]
    return [{**collate(part), "num_rows": len(part)} for part in rows]


def _filler(prompts: PromptBuilder) -> LoadedRow:
    ids, _ = prompts.prompt([{"role": "user", "content": "?"}])
    return LoadedRow("filler", "fixed", ids, len(ids), [])


def _row(prompts: PromptBuilder, rng: np.random.Generator, row_id: str, num_clips: int) -> LoadedRow:
    clips = [0.1 * rng.standard_normal(int(rng.integers(2_000, 36_000))).astype(np.float32) for _ in range(num_clips)]
    message: dict[str, Any] = {"role": "user", "content": "<|AUDIO|>" * num_clips + "What can be heard?"}
    if num_clips:
        message["audios"] = [{"audio": "unused.wav"}] * num_clips
    response = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 12))))
    example = prompts.example({"id": row_id, "messages": [message], "response": response})
    return LoadedRow(row_id, "fixed", example.ids, example.prompt_len, clips)
