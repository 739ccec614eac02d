import pytest
import torch

from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_even, plan_fixed


def test_fixed_plan_keeps_an_empty_clip():
    assert plan_fixed([7, 0, 6], 3) == [
        Chunk(0, 0, 3),
        Chunk(0, 3, 3),
        Chunk(0, 6, 1),
        Chunk(1, 0, 0),
        Chunk(2, 0, 3),
        Chunk(2, 3, 3),
    ]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 129, 593])
def test_even_plan_is_whole_and_even(length):
    chunks = plan_even([length], 64)
    assert chunks[0].start == 0 and sum(c.length for c in chunks) == length
    assert all(a.start + a.length == b.start for a, b in zip(chunks, chunks[1:], strict=False))
    sizes = {c.length for c in chunks}
    assert max(sizes) <= 64 and max(sizes) - min(sizes) <= 1
    assert len(chunks) == -(-length // 64)


@pytest.mark.parametrize("plan", [plan_fixed, plan_even])
def test_join_undoes_cut(plan):
    lens = [7, 2, 12]
    signal = torch.arange(3 * 12 * 2, dtype=torch.float32).view(3, 12, 2)
    chunks = plan(lens, 5)
    flat = cut(signal, chunks, 5)
    assert flat.shape == (len(chunks), 5, 2)
    assert all((flat[row, chunk.length :] == 0).all() for row, chunk in enumerate(chunks))
    (joined,) = join([flat], chunks, lens)
    for row, length in enumerate(lens):
        assert torch.equal(joined[row, :length], signal[row, :length])
