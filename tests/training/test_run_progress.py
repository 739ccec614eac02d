"""The line of a training: steps of all, this run's speed, tokens per second."""

import logging
from types import SimpleNamespace

from nemo_desta import progress
from nemo_desta.training.progress import RunProgress


def test_a_resumed_training_shows_its_own_speed_and_the_steps_of_all(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nemo_desta")
    now = 50.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    metrics = {"loss": 1.5, "v_num": 1, "tokens_per_s": 9.0}
    trainer = SimpleNamespace(is_global_zero=True, max_steps=500, global_step=400, current_epoch=3)
    trainer.progress_bar_metrics = metrics
    module = SimpleNamespace(read_positions=(120, 200))
    shown = RunProgress()
    shown.on_train_start(trainer, module)
    for batch in range(20):  # two batches a step
        now += 1
        trainer.global_step += batch % 2
        shown.on_train_batch_end(trainer, module)
    metrics["loss"] = 1.25
    shown.on_train_end(trainer, module)
    shown.teardown(trainer, module, "fit")
    assert caplog.messages == [
        "training: 405 of 500 steps (81 %), 30.0 steps/min, 120 tokens/s, about 3 min left, epoch 3, loss 1.5",
        "training: 410 of 500 steps, 30.0 steps/min, 120 tokens/s, after 20 s, epoch 3, loss 1.25",
    ]
