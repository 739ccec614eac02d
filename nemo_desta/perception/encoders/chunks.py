"""Chunking: cut long clips into one flat batch of encoder-sized chunks, and join the encoded chunks again.

Only chunks that hold samples of a clip are created, so short clips are not padded to the longest clip of a batch.
Letters: B clips, S positions of the signal, N chunks of the whole batch, L positions per chunk, T frames, C channels.
"""

from typing import NamedTuple

import torch


class Chunk(NamedTuple):
    """``length`` positions of clip ``clip``, beginning at ``start``."""

    clip: int
    start: int
    length: int


def plan_fixed(lengths: list[int], size: int) -> list[Chunk]:
    """Chunks of ``size`` positions, the last one of a clip shorter; an empty clip keeps one chunk of length 0."""
    return [
        Chunk(clip, start, min(size, length - start))
        for clip, length in enumerate(lengths)
        for start in range(0, max(length, 1), size)
    ]


def plan_even(lengths: list[int], max_size: int) -> list[Chunk]:
    """As few chunks of at most ``max_size`` positions as possible, of equal size up to one position.

    So no clip ends in a chunk that is too short to be encoded well.
    """
    chunks = []
    for clip, length in enumerate(lengths):
        count = -(-length // max_size)
        bounds = [length * i // count for i in range(count + 1)]
        chunks += [Chunk(clip, bounds[i], bounds[i + 1] - bounds[i]) for i in range(count)]
    return chunks


def cut(signal: torch.Tensor, chunks: list[Chunk], size: int) -> torch.Tensor:
    """signal: (B, S, ...) -> (N, size, ...), zeros beyond each chunk's length."""
    flat = signal.new_zeros(len(chunks), size, *signal.shape[2:])
    for row, chunk in enumerate(chunks):
        flat[row, : chunk.length] = signal[chunk.clip, chunk.start : chunk.start + chunk.length]
    return flat


def join(layers: list[torch.Tensor], chunks: list[Chunk], lens: list[int]) -> tuple[torch.Tensor, ...]:
    """Put encoded chunks end to end.

    layers: tensors (N, L, C); ``chunks`` counted in frames, in order of clip and time; ``lens``: frames of each clip
    -> tensors (B, T, C) with T = max(lens). Frames beyond a clip's own hold copies of other frames.
    """
    num_frames = max(lens)
    if len(chunks) == len(lens):
        return tuple(layer[:, :num_frames] for layer in layers)
    size = layers[0].shape[1]
    rows = torch.zeros(len(lens), num_frames, dtype=torch.int64)
    for row, chunk in enumerate(chunks):
        end = min(chunk.start + chunk.length, num_frames)
        rows[chunk.clip, chunk.start : end] = torch.arange(row * size, row * size + end - chunk.start)
    rows = rows.to(layers[0].device)  # (B, T) -> row of the (N * L) encoded frames
    return tuple(layer.flatten(0, 1)[rows] for layer in layers)
