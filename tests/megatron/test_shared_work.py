"""What ranks do together in a step: share clips out, sum gradients, one loss over a split vocabulary, one reader."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.megatron.shared_encoding import share_bounds
from tests.megatron.launch import launch

HERE = "tests.megatron.test_shared_work."


@pytest.mark.parametrize(("num_clips", "num_ranks"), [(0, 2), (1, 4), (5, 3), (8, 8), (13, 4)])
def test_shares_hold_every_clip_once_and_differ_by_one_at_most(num_clips, num_ranks):
    bounds = share_bounds(num_clips, num_ranks)
    sizes = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    assert bounds[0] == 0 and bounds[-1] == num_clips
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 0


@pytest.mark.slow
def test_shared_clips_give_the_vectors_and_gradients_of_one_rank():
    """Three ranks; one, two and five clips, so some ranks have none."""
    counts = [1, 2, 5]
    ranks = launch(HERE + "perceived", 3, counts=counts)
    for case, num_clips in enumerate(counts):
        ear, audio, lens, weight = ear_and_clips(num_clips)
        valid = torch.arange(audio.shape[1]) < lens[:, None]
        expected = ear(audio[:, :, None])
        (expected * weight)[valid].sum().backward()
        found = [rank[case] for rank in ranks]
        for rank in found:
            torch.testing.assert_close(rank["vectors"][valid], expected[valid].detach())
        torch.testing.assert_close(sum(rank["gradient"] for rank in found), ear.weight.grad)
        assert sum(rank["num_encoded"] for rank in found) == num_clips


def ear_and_clips(num_clips):
    """One vector per sample; ``weight``: a gradient that differs everywhere."""
    torch.manual_seed(0)
    lens = torch.tensor([5, 2, 7, 3, 1])[:num_clips]
    width = int(lens.max())
    return nn.Linear(1, 4), torch.randn(num_clips, width), lens, torch.randn(num_clips, width, 4)


def perceived(counts):
    import torch.distributed as dist

    from nemo_desta.megatron.shared_encoding import perceive_shared

    results = []
    for num_clips in counts:
        ear, audio, lens, weight = ear_and_clips(num_clips)
        num_encoded = 0

        def perceive(clips, clip_lens, ear=ear):
            nonlocal num_encoded
            num_encoded += len(clips)
            return ear(clips[:, :, None]), clip_lens

        shape = {"output_size": 4, "dtype": torch.float32, "group": dist.group.WORLD}
        vectors = perceive_shared(perceive, audio, lens, lens, **shape)
        valid = torch.arange(vectors.shape[1]) < lens[:, None]
        (vectors * weight)[valid].sum().backward()  # every rank runs the same LLM on the same vectors
        gradient = torch.zeros_like(ear.weight) if ear.weight.grad is None else ear.weight.grad
        results.append({"vectors": vectors.detach(), "gradient": gradient, "num_encoded": num_encoded})
    return results


@pytest.mark.slow
def test_loss_and_argmax_over_a_split_vocabulary_are_those_of_the_whole_one():
    logits = 3 * torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    logits[:, 5:] = float("-inf")  # columns that pad the vocabulary
    logits[2, 1] = logits[2, 4] = 50.0  # a tie over two ranks: the first one counts
    target_ids = torch.tensor([0, 4, 1, 3, 2, 4])
    whole = logits.clone().requires_grad_()
    loss = F.cross_entropy(whole, target_ids, reduction="sum")
    loss.backward()
    ranks = launch(HERE + "split_loss", 2, logits=logits, target_ids=target_ids)
    for number, rank in enumerate(ranks):
        assert rank["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert torch.equal(rank["argmax"], logits.argmax(-1))
        torch.testing.assert_close(rank["gradient"], whole.grad[:, 4 * number : 4 * number + 4])


def split_loss(logits, target_ids):
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_desta.megatron.loss import argmax, summed_cross_entropy

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    own = logits.chunk(2, dim=1)[dist.get_rank()].clone().requires_grad_()
    best = argmax(own, group=parallel_state.get_tensor_model_parallel_group())
    loss = summed_cross_entropy(own.clone(), target_ids)
    loss.backward()
    return {"loss": loss.item(), "argmax": best, "gradient": own.grad}


@pytest.mark.slow
def test_gradients_are_summed_over_ranks_some_of_which_have_none():
    first, second = launch(HERE + "summed", 2)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert first["everywhere"].tolist() == [3.0, 3.0, 3.0]  # 1 on rank 0, 2 on rank 1
    assert first["on_rank_0"].tolist() == [[1.0, 1.0]]
    assert first["half"].dtype == torch.bfloat16 and first["half"].tolist() == [3.0]
    assert "frozen" not in first


def summed():
    import torch.distributed as dist

    from nemo_desta.megatron import gradients

    rank = dist.get_rank()
    parameters = {
        "everywhere": nn.Parameter(torch.zeros(3)),
        "on_rank_0": nn.Parameter(torch.zeros(1, 2)),
        "half": nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)),
        "frozen": nn.Parameter(torch.zeros(1), requires_grad=False),
    }
    for name in ("everywhere", "half", *(["on_rank_0"] if rank == 0 else [])):
        parameters[name].grad = torch.full_like(parameters[name], rank + 1.0)
    gradients.sum_gradients(parameters.values(), dist.group.WORLD)
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"pipeline": 2}, {"context": 2}])
def test_one_rank_reads_and_its_error_is_everybodys(sizes):
    first, second = launch(HERE + "received", 2, sizes=sizes)
    assert first["num_read"] == 2 and second["num_read"] == 0
    for name in ("input_ids", "vector_lens"):
        assert torch.equal(first["batch"][name], second["batch"][name])
    assert first["batch"]["row_ids"] == second["batch"]["row_ids"] == ["a"]
    assert first["batch"]["vector_lens"].tolist() == [3, 1]
    assert first["batch"]["audio"].shape == (2, 6)
    # the second pipeline stage does not hear
    assert second["batch"]["audio"].numel() == (0 if "pipeline" in sizes else 12)
    assert first["length"] == second["length"] == 7
    assert first["error"] == "OSError: the disk is gone"
    assert second["error"] == "rank 0, which reads the data for this rank, failed: OSError: the disk is gone"


def received(sizes):
    from nemo_desta.megatron.broadcast import BroadcastLoader
    from tests.megatron.llms import groups

    with groups(**sizes):
        return _received(BroadcastLoader)


def _received(loader_class):
    num_read = 0

    class Reader:
        def __iter__(self):
            nonlocal num_read
            num_read += 1
            yield {
                "audio": torch.ones(2, 6),
                "audio_lens": torch.tensor([6, 2]),
                "input_ids": torch.arange(4)[None],
                "row_ids": ["a"],
            }
            num_read += 1
            raise OSError("the disk is gone")

        def __len__(self):
            return 7

    loader = loader_class(Reader(), num_audio_tokens=lambda samples: samples // 2, device=torch.device("cpu"))
    batches = iter(loader)
    batch, error = next(batches), ""
    try:
        next(batches)
    except (OSError, RuntimeError) as caught:
        error = f"OSError: {caught}" if isinstance(caught, OSError) else str(caught)
    return {"batch": batch, "error": error, "num_read": num_read, "length": len(loader)}
