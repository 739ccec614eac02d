"""The kernels under DDP and FSDP2: two processes give the gradients of one. Interpreted, so on a CPU."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from nemo_desta.perception.projector import WindowProjector
from tests.megatron.launch import launch
from tests.perception.projector.toys import RATE, randomise, toy_encoders, toy_features

pytest.importorskip("triton", reason="the kernels need triton, which has no build for this platform")

SAMPLES = [[9_003, 5_000], [4_000, 1]]  # clips of each rank


def gradients(rank: int, wrap: str = "") -> dict[str, torch.Tensor]:
    """Gradients of one rank's batch; those of both ranks, averaged, when wrapped."""
    torch.manual_seed(0)
    encoders = toy_encoders()
    projector = randomise(WindowProjector(encoders, 10, num_queries=2, kernel="triton"))
    if wrap == "ddp":
        module = DistributedDataParallel(projector)
    elif wrap == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        module = fully_shard(projector, mesh=init_device_mesh("cpu", (2,)))
    else:
        module = projector
    features = toy_features(encoders, SAMPLES[rank], first_clip=2 * rank)
    vectors, _ = module(features, audio_lens=torch.tensor(SAMPLES[rank]), sampling_rate=RATE)
    (vectors * torch.linspace(-1, 1, vectors.shape[-1])).sum().backward()
    grads = {name: p.grad for name, p in projector.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}


def gradients_of_this_rank(wraps: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """What a process of `launch` runs."""
    return {wrap: gradients(torch.distributed.get_rank(), wrap) for wrap in wraps}


def gradients_of_both() -> list[dict[str, torch.Tensor]]:
    """Each rank's batch on its own, in one process."""
    return [gradients(rank) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    [alone] = launch("tests.ops.test_parallel.gradients_of_both", 1, preloaded=False)
    both = launch("tests.ops.test_parallel.gradients_of_this_rank", 2, preloaded=False, wraps=["ddp", "fsdp2"])
    for wrap, found in [(wrap, rank[wrap]) for rank in both for wrap in rank]:
        assert found.keys() == alone[0].keys()
        for name, gradient in found.items():
            mean = (alone[0][name] + alone[1][name]) / 2
            where = f"{wrap}, {name}"
            torch.testing.assert_close(gradient, mean, rtol=1e-5, atol=1e-6, msg=lambda m, w=where: f"{w}: {m}")
    assert [sorted(rank) for rank in both] == [["ddp", "fsdp2"]] * 2
