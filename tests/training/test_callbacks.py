"""The guard skips steps that are not finite and names their rows; step seeds do not depend on history."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nemo_desta.models.loss_window import LossWindow
from nemo_desta.training.callbacks import NaNGuard, NotFinite, StepLog, StepSeed, first_prompts
from nemo_desta.types import AUDIO_SLOT


@pytest.fixture
def step():
    parameter = nn.Parameter(torch.ones(3))
    module = SimpleNamespace(window=LossWindow())
    return parameter, module, torch.optim.SGD([parameter], lr=1.0), SimpleNamespace(global_step=7)


def test_a_step_with_nan_gradients_is_skipped_and_its_rows_are_named(step, caplog):
    parameter, module, optimizer, trainer = step
    parameter.grad = torch.tensor([1.0, float("nan"), 0.0])
    module.window.add(5, ["row-a", "row-b"])
    with caplog.at_level(logging.ERROR):
        NaNGuard().on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    assert parameter.tolist() == [1.0, 1.0, 1.0]
    assert "row-a, row-b" in caplog.text and "step 7" in caplog.text


def test_finite_gradients_pass_untouched(step):
    parameter, module, optimizer, trainer = step
    parameter.grad = torch.tensor([1.0, 2.0, 0.0])
    NaNGuard().on_before_optimizer_step(trainer, module, optimizer)
    assert parameter.grad.tolist() == [1.0, 2.0, 0.0]


def test_too_many_bad_steps_in_a_row_stop_the_run(step):
    parameter, module, optimizer, trainer = step
    guard = NaNGuard(patience=3)
    for good in (False, False, True, False, False):  # the good one starts the count again
        parameter.grad = torch.full((3,), 1.0 if good else float("inf"))
        guard.on_before_optimizer_step(trainer, module, optimizer)
    parameter.grad = torch.full((3,), float("inf"))
    with pytest.raises(NotFinite, match="3 steps in a row"):
        guard.on_before_optimizer_step(trainer, module, optimizer)


def test_a_step_draws_the_same_numbers_whatever_came_before():
    def draw(done, rank, history):
        torch.randn(history)
        progress = SimpleNamespace(total=SimpleNamespace(ready=done))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        StepSeed(3).on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=rank), None, None, 0)
        return torch.randn(4).tolist()

    assert draw(5, 0, 1) == draw(5, 0, 100)
    assert draw(5, 0, 1) != draw(6, 0, 1)
    assert draw(5, 0, 1) != draw(5, 1, 1)


def test_sample_prompts_hold_no_target():
    batch = {
        "audio": torch.zeros(2, 10),
        "audio_lens": torch.tensor([10, 5]),
        "input_ids": torch.tensor([[AUDIO_SLOT, 7, 8, 9], [5, AUDIO_SLOT, 6, 4]]),
        "input_lens": torch.tensor([4, 4]),
        "prompt_lens": torch.tensor([2, 3]),
    }
    prompt = first_prompts(batch, 2)
    assert prompt["input_ids"].tolist() == [[AUDIO_SLOT, 7, 0], [5, AUDIO_SLOT, 6]]
    assert prompt["input_lens"].tolist() == [2, 3]
    assert first_prompts(batch, 1)["audio_lens"].tolist() == [10]


def test_a_kill_while_a_resumed_run_cuts_its_step_log_loses_no_line(tmp_path, monkeypatch):
    def resume():
        progress = SimpleNamespace(total=SimpleNamespace(completed=3))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path, fit_loop=loop)
        StepLog().on_train_start(trainer, None)

    path = tmp_path / "records" / "steps.jsonl"
    path.parent.mkdir()
    path.write_bytes(lines := b"1\n2\n3\n4\n5")  # the last one is not whole
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.truncate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        resume()
    assert path.read_bytes() == lines
    resume()
    assert path.read_bytes() == b"1\n2\n3\n"
