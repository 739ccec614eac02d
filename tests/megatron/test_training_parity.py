"""However the LLM is split and the batch is cut, twenty steps are those of the plain model on one device.

float32, one start, one list of global batches with ragged rows of one, two and no audio, no dropout.
"""

import pytest
import torch

from nemo_desta.models.desta import DestaModel
from tests.megatron.fixed_batches import NUM_STEPS, global_batch
from tests.megatron.launch import launch
from tests.megatron.workplace import TIME_LIMIT

pytestmark = pytest.mark.slow

RUN = "tests.megatron.fixed_run.run"
#: name -> (sizes, how a global batch is cut, processes)
LAYOUTS = {
    "one": ({}, "whole", 1),
    "one_accumulated": ({}, "accumulate", 1),
    "tp2": ({"tensor_parallel_size": 2}, "whole", 2),
    "tp2_sp": ({"tensor_parallel_size": 2, "sequence_parallel": True}, "whole", 2),
    "pp2": ({"pipeline_parallel_size": 2}, "whole", 2),
    "pp2_accumulated": ({"pipeline_parallel_size": 2}, "accumulate", 2),
    "tp2_pp2_sp": (
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "sequence_parallel": True},
        "accumulate",
        4,
    ),
    "tp2_pp2": ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "whole", 4),
    "dp2_tp2": ({"tensor_parallel_size": 2}, "data", 4),
    "tp4": ({"tensor_parallel_size": 4}, "whole", 4),  # each of the two key-value heads on two ranks
    "cp2": ({"context_parallel_size": 2}, "whole", 2),
    "cp2_tp2_sp": (
        {"context_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True},
        "whole",
        4,
    ),
    "cp2_pp2": ({"context_parallel_size": 2, "pipeline_parallel_size": 2}, "accumulate", 4),
    "dp2_cp2": ({"context_parallel_size": 2}, "data", 4),
    "dp2_pp2": ({"pipeline_parallel_size": 2}, "data", 4),
}
EXPERT_LAYOUTS = {
    "one": ({}, "whole", 1),
    "ep2": ({"expert_parallel_size": 2}, "data", 2),
    "tp2_ep2_sp": ({"expert_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True}, "accumulate", 2),
    "tp2_ep2": ({"expert_parallel_size": 2, "tensor_parallel_size": 2}, "whole", 2),
    "cp2_ep2": ({"expert_parallel_size": 2, "context_parallel_size": 2}, "whole", 2),
    "pp2_ep2": ({"expert_parallel_size": 2, "pipeline_parallel_size": 2}, "data", 4),
}
WINDOW_LAYOUTS = {name: LAYOUTS[name] for name in ("tp2", "tp2_sp", "pp2_accumulated")}


@pytest.fixture(scope="module")
def plain(fixed):
    return run_plain(fixed)


@pytest.fixture(scope="module")
def plain_experts(fixed_experts):
    return run_plain(fixed_experts)


@pytest.fixture(scope="module")
def plain_windows(fixed_windows):
    return run_plain(fixed_windows)


def run_plain(fixed):
    arguments = {"split": "whole", "num_processes": 1, "validate": True, "answer": True, "time_limit": TIME_LIMIT}
    return launch(RUN, 1, init_group=False, model=fixed, strategy={"name": "auto"}, **arguments)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_split_llm_trains_the_projector_of_the_plain_one(fixed, plain, tmp_path, name):
    check_training(fixed, plain, tmp_path, *LAYOUTS[name])


@pytest.mark.parametrize("name", EXPERT_LAYOUTS)
def test_a_split_mixture_of_experts_trains_the_projector_of_the_plain_one(
    fixed_experts, plain_experts, tmp_path, name
):
    check_training(fixed_experts, plain_experts, tmp_path, *EXPERT_LAYOUTS[name])


@pytest.mark.parametrize("name", WINDOW_LAYOUTS)
def test_a_split_llm_with_windows_trains_the_projector_of_the_plain_one(fixed_windows, plain_windows, tmp_path, name):
    check_training(fixed_windows, plain_windows, tmp_path, *WINDOW_LAYOUTS[name])


def test_ranks_that_share_experts_do_not_wait_for_one_without_rows(fixed_experts, plain_experts):
    """The last step of an epoch may leave a rank without rows. Here the first rank has all of them, at every step."""
    strategy = {"name": "megatron", "expert_parallel_size": 2}
    settings = {"split": "first", "num_processes": 2, "num_steps": 4, "validate": True, "answer": True}
    ranks = launch(RUN, 2, init_group=False, model=fixed_experts, strategy=strategy, time_limit=TIME_LIMIT, **settings)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(plain_experts["losses"][:4], rel=1e-5)
        assert torch.equal(rank["answers"], ranks[0]["answers"])


def check_training(fixed, plain, tmp_path, sizes, split, num_processes):
    ranks = launch(
        RUN,
        num_processes,
        init_group=False,
        model=fixed,
        strategy={"name": "megatron", **sizes},
        split=split,
        num_processes=num_processes,
        validate=True,
        answer=True,
        time_limit=TIME_LIMIT,
        save_to=str(tmp_path / "model"),
    )
    assert len(plain["losses"]) == NUM_STEPS
    for rank in ranks:  # later stages, too: every rank logs and decides by the same numbers
        assert rank["losses"] == pytest.approx(plain["losses"], rel=1e-5)
        assert rank["validation"] == pytest.approx(plain["validation"], rel=1e-5)
    # A gradient that is zero but for rounding makes Adam step at random; one that is exactly zero does nothing.
    left_out = {name for name, largest in plain["largest_gradient"].items() if largest == 0}
    assert not left_out, f"never trained here, so nothing is shown about {sorted(left_out)}"
    # Adam hardly sees the scale of a gradient, so the norms say whether it was divided by the right count.
    assert ranks[0]["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    weights = ranks[0]["weights"]
    assert set(weights) == set(plain["weights"])
    for name, tensor in plain["weights"].items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-4, msg=name)
    check_who_heard_what(ranks, plain, sizes)
    check_answers(ranks, plain)
    check_opens_on_one_device(fixed, tmp_path / "model", ranks[0])


def check_who_heard_what(ranks, plain, sizes):
    """Every clip is encoded once, by one rank of the first stage; later stages have neither encoders nor projector."""
    num_first = len(ranks) // sizes.get("pipeline_parallel_size", 1)
    for name, counts in plain["clips"].items():
        assert sum(sum(rank["clips"][name]) for rank in ranks[:num_first]) == sum(counts)
        shares = [sum(rank["clips"][name]) for rank in ranks[:num_first]]
        assert min(shares) > 0
        if sizes.get("tensor_parallel_size", 1) * sizes.get("context_parallel_size", 1) > 1:
            assert max(shares) < 0.8 * sum(counts)
    for rank in ranks[num_first:]:
        assert rank["clips"] == {} and rank["weights"] == {}


def check_answers(ranks, plain):
    """The first rows are the same under every cut of the batch; a data-parallel half has fewer of them."""
    answers = ranks[0]["answers"]
    width = min(answers.shape[1], plain["answers"].shape[1])
    expected = plain["answers"][: answers.shape[0], :width]
    assert width > 1 and torch.equal(answers[:, :width], expected)


def check_opens_on_one_device(fixed, folder, rank):
    """The model folder of a split run is a model folder: the plain model opens it and validates to the same loss."""
    model = DestaModel.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        found = [model.loss(batch)[:2] for step in range(4) for batch in global_batch(model.prompts, step, "whole")]
    loss = sum(float(loss) for loss, _ in found) / sum(count for _, count in found)
    assert loss == pytest.approx(rank["validation"]["val_loss"], rel=1e-5)
