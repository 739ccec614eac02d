"""Rows with the lengths of ALARM's corpus, and batches of them; the audio is noise.

Letters: B rows, L text positions, A clips (one per row), S samples.
"""

import math
from typing import Any, NamedTuple

import torch

from nemo_desta.types import AUDIO_SLOT

SAMPLING_RATE = 16_000
MEDIAN_SECS, SPREAD = 9.35, 0.62  # log-normal; clipped to 1-30 s its mean is 11 s
MIN_SECS, MAX_SECS = 1.0, 30.0
TARGET_TOKENS = (100, 600)
PROMPT_TOKENS = (20, 80)
POOL = 2048  # rows that bucketing looks at together, as in the data section's bucket_buffer_size
MAX_ROWS = 32  # per batch, as in the data section


class BenchRow(NamedTuple):
    """``prompt_tokens`` count the template and the question, without the audio slot."""

    num_samples: int
    prompt_tokens: int
    target_tokens: int

    def positions(self, tokens_per_second: float) -> int:
        """Positions of the row in the LLM at a number of vectors per second of audio."""
        audio = math.ceil(self.num_samples / SAMPLING_RATE * tokens_per_second)
        return audio + self.prompt_tokens + self.target_tokens


def make_rows(count: int, seed: int) -> list[BenchRow]:
    """Independent rows: log-normal clips, uniform targets and prompts."""
    rng = torch.Generator().manual_seed(seed)
    secs = (MEDIAN_SECS * (SPREAD * torch.randn(count, generator=rng)).exp()).clamp(MIN_SECS, MAX_SECS)
    targets = torch.randint(TARGET_TOKENS[0], TARGET_TOKENS[1] + 1, (count,), generator=rng)
    prompts = torch.randint(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1, (count,), generator=rng)
    samples = (secs * SAMPLING_RATE).long()
    return [BenchRow(*row) for row in zip(samples.tolist(), prompts.tolist(), targets.tolist(), strict=True)]


def bucketed(rows: list[BenchRow], batch_tokens: int, tokens_per_second: float) -> list[list[BenchRow]]:
    """Batches of similar length, as in the data layer: rows times longest row within ``batch_tokens``."""
    return cut(sorted(rows, key=lambda row: row.positions(tokens_per_second)), batch_tokens, tokens_per_second)


def shuffled(rows: list[BenchRow], seed: int) -> list[BenchRow]:
    """The same rows in random order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def cut(rows: list[BenchRow], batch_tokens: int, tokens_per_second: float) -> list[list[BenchRow]]:
    """Batches in the given order, each with rows times longest row within ``batch_tokens``."""
    batches: list[list[BenchRow]] = []
    longest = 0
    for row in rows:
        positions = row.positions(tokens_per_second)
        longest = max(longest, positions)
        if not batches or len(batches[-1]) == MAX_ROWS or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = positions
        batches[-1].append(row)
    return batches


def spread(batches: list[list[BenchRow]], count: int) -> list[list[BenchRow]]:
    """``count`` batches evenly spaced over all lengths, in an order that mixes short and long."""
    chosen = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [chosen[i] for i in order]


def collate(rows: list[BenchRow], noise: torch.Tensor, vocab_size: int) -> dict[str, Any]:
    """A batch of the data layer on the host; ``noise``: (S,) at least as long as any clip.

    Text is prompt, one slot in its middle, target.
    """
    audio = torch.zeros(len(rows), max(row.num_samples for row in rows))
    ids = torch.zeros(len(rows), max(row.prompt_tokens + row.target_tokens for row in rows) + 1, dtype=torch.int64)
    for i, row in enumerate(rows):
        audio[i, : row.num_samples] = noise[: row.num_samples]
        length = row.prompt_tokens + row.target_tokens + 1
        ids[i, :length] = (torch.arange(length) * 7919 + i) % vocab_size
        ids[i, row.prompt_tokens // 2] = AUDIO_SLOT
    return {
        "audio": audio,
        "audio_lens": torch.tensor([row.num_samples for row in rows]),
        "input_ids": ids,
        "input_lens": torch.tensor([row.prompt_tokens + row.target_tokens + 1 for row in rows]),
        "prompt_lens": torch.tensor([row.prompt_tokens + 1 for row in rows]),
    }
