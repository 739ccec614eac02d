"""The user's command with strategy=megatron: kill and resume under any layout, odd ends of epochs, answers, a stop."""

import shutil
import signal

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TP2 = {"strategy": "megatron", "strategy.tensor_parallel_size": 2, "trainer.devices": 2}
PP2 = {"strategy": "megatron", "strategy.pipeline_parallel_size": 2, "trainer.devices": 2}
PLAIN = {"strategy": "auto", "trainer.devices": 1}
#: 40 rows, 3 a batch: an epoch is 14 batches, the last one of one row.
RUN = {
    "data.train_ds.max_batch_size": 3,
    "trainer.max_steps": 18,
    "exp_manager.checkpoint_callback_params.every_n_train_steps": 5,
    "callbacks.throughput_window": 6,
}


def assert_same(found, expected, *, exact):
    """Rows, numbering and losses of two steps.jsonl; another layout adds in another order, hence the last digits."""
    assert [{**line, "loss": 0} for line in found] == [{**line, "loss": 0} for line in expected]
    losses = [[line["loss"] for line in lines] for lines in (found, expected)]
    assert losses[0] == (losses[1] if exact else pytest.approx(losses[1], rel=1e-5))


@pytest.fixture(scope="module")
def whole(workplace):
    """The uninterrupted run."""
    return workplace.finish("whole", **RUN, **TP2)


@pytest.fixture(scope="module")
def killed(workplace):
    """Killed after step 10 was saved; gives a fresh copy of what is left under a new name."""
    code, _ = workplace.run("killed", until=lambda: workplace.num_lines("killed") >= 11, **RUN, **TP2)
    assert code == -signal.SIGKILL
    saved = list((workplace.folder / "killed" / "desta25" / "checkpoints").glob("*last.ckpt"))
    assert len(saved) == 1, saved

    def copy(name):
        shutil.copytree(workplace.folder / "killed", workplace.folder / name)
        return name

    return copy


def test_the_command_trains_what_the_plain_one_trains(workplace, whole):
    assert_same(whole, workplace.finish("plain", **RUN, **PLAIN), exact=False)
    split, plain = (
        load_file(workplace.folder / name / "desta25" / "model" / "projector.safetensors")
        for name in ("whole", "plain")
    )
    assert set(split) == set(plain)


@pytest.mark.parametrize(("name", "layout"), [("same", TP2), ("pipeline", PP2), ("one_device", PLAIN)])
def test_a_killed_run_goes_on_under_any_layout_of_equal_data_parallel_size(workplace, whole, killed, name, layout):
    assert_same(workplace.finish(killed(name), **RUN, **layout), whole, exact=name == "same")


def test_a_plain_run_goes_on_split(workplace, whole):
    half = {**RUN, "model.lr_scheduler.max_steps": 18}
    workplace.finish("begun_plain", **{**half, "trainer.max_steps": 10}, **PLAIN)
    assert_same(workplace.finish("begun_plain", **half, **PP2), whole, exact=False)


def test_windows_end_with_the_epoch_and_idle_ranks_do_not_hang(workplace):
    """40 rows, 3 a batch, 2 readers, 3 batches a step: epochs end in a window of one, and a rank without rows."""
    more = {
        "data.train_ds.max_batch_size": 3,
        "trainer.accumulate_grad_batches": 3,
        "trainer.max_steps": 8,
    }
    split = workplace.finish("split_windows", **more, **PP2 | {"trainer.devices": 4})
    plain = workplace.finish("plain_windows", **more, **{"strategy": "ddp", "trainer.devices": 2})
    assert_same(split, plain, exact=False)
    assert [line["step"] for line in split[:8]] == [0, 0, 1, 1, 1, 2, 3, 3]


def test_sigterm_saves_and_every_process_exits_cleanly(workplace, whole):
    code, output = workplace.run(
        "asked", until=lambda: workplace.num_lines("asked") >= 7, sig=signal.SIGTERM, **RUN, **TP2
    )
    assert code == 0, output[-3000:]
    assert "SIGTERM at step" in output
    assert 7 <= workplace.num_lines("asked") < 18
    assert_same(workplace.finish("asked", **RUN, **TP2), whole, exact=True)


def test_validation_and_sample_answers_are_those_of_one_device(workplace):
    rows = workplace.folder / "valid"
    more = {
        "+data.validation_ds.datasets.tones.input_cfg": f"[{{type:desta,rows:{rows / 'rows.jsonl'}}}]",
        "data.audio_roots.default": rows,
        "data.train_ds.input_cfg.0.rows": rows / "rows.jsonl",
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 2,
        "callbacks.sample_max_new_tokens": 6,
    }
    found = []
    for name, strategy in (("split_valid", PP2), ("plain_valid", PLAIN)):
        code, output = workplace.run(name, **more, **strategy)
        assert code == 0, output[-4000:]
        found.append([line for line in output.splitlines() if line.startswith("  answer:")])
    assert found[0] == found[1] and len(found[0]) == 4


def test_a_feature_cache_is_filled_and_read_by_the_ranks_that_have_encoders(workplace, whole, tmp_path):
    """In the first epoch (14 batches) clips are encoded in the same batches as without a cache. Later, and after
    precomputing, a clip that a rank would encode alone was encoded among others: other kernels, hence the last digits.
    """
    cache = {"data.feature_cache": f"{{folder:{tmp_path}}}"}
    found = workplace.finish("cached", **RUN, **TP2, **cache)
    assert_same(found[:14], whole[:14], exact=True)
    assert_same(found, whole, exact=False)
    cache = {"data.feature_cache": f"{{folder:{tmp_path},precompute:true}}"}
    assert_same(workplace.finish("cached_pp", **RUN, **PP2, **cache), whole, exact=False)
    log = (workplace.folder / "cached_pp" / "desta25" / "records" / "log.txt").read_text()
    assert "0 clips encoded by this process" in log and "were read (100.0%)" in log
