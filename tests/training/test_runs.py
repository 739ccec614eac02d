"""What a user follows of a run: the stop by Ctrl-C, the log file, the curves, the progress, the files it leaves."""

import json
import logging
import os
import signal
import stat
import time

import pytest
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_desta.errors import ConfigError
from nemo_desta.training import fit as fitting
from nemo_desta.training.preflight import MissingParts
from nemo_desta.training.run_log import run_log
from tests.training.test_kills import SMALL, outcome


class Press(Callback):
    """Ctrl-C in a step: once, or twice."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_before_optimizer_step(self, trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                before = signal.getsignal(signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                while signal.getsignal(signal.SIGINT) == before:  # two signals that are pending together are one
                    time.sleep(0.001)


@pytest.fixture(autouse=True)
def ctrl_c_counts():
    """A shell lets its background jobs ignore Ctrl-C, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def few(workplace):
    return {
        **SMALL,
        "trainer.max_steps": 6,
        "data.train_ds.input_cfg.0.rows": workplace.few_rows(),
        "exp_manager.checkpoint_callback_params.every_n_train_steps": 100,
    }


def train(workplace, monkeypatch, run: str, *extra: Callback, **more: object):
    own = fitting.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "build_callbacks", lambda settings, seed: [*own(settings, seed), *extra])
        return fitting.fit(workplace.config(run, **more))


def test_ctrl_c_saves_and_the_same_command_goes_on(workplace, few, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nemo_desta")  # as the command does
    before = signal.getsignal(signal.SIGINT)
    assert train(workplace, monkeypatch, "whole", **few)
    with pytest.raises(KeyboardInterrupt):
        train(workplace, monkeypatch, "pressed", Press(2), **few)
    assert signal.getsignal(signal.SIGINT) is before
    folder = workplace.folder / "pressed" / "desta25"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=3-last.ckpt"]
    assert train(workplace, monkeypatch, "pressed", **few)
    wanted = outcome(workplace, "whole")
    assert outcome(workplace, "pressed") == wanted and len(wanted["steps"]) == 6
    said = (folder / "records" / "log.txt").read_text()
    assert "SIGINT at step 3: state saved" in said and "resuming from" in said and "trained part written" in said
    assert "training: 6 of 6 steps, " in said and " tokens/s, " in said


def test_a_second_ctrl_c_ends_at_once(workplace, few, monkeypatch):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(workplace, monkeypatch, "twice", Press(2, times=2), **few)
    assert not list((workplace.folder / "twice" / "desta25").glob("checkpoints/*.ckpt"))


def test_the_curves_of_a_run(workplace, few, monkeypatch):
    more = {**few, "exp_manager.create_tensorboard_logger": "true", "trainer.log_every_n_steps": 1}
    assert train(workplace, monkeypatch, "curves", **more)
    folder = workplace.folder / "curves" / "desta25"
    events = EventAccumulator(str(folder)).Reload() if any(folder.glob("events*")) else None
    events = events or EventAccumulator(str(next(folder.rglob("events*")).parent)).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "lr", "grad_norm", "supervised_tokens"} <= set(tags)
    norms, tokens = ([event.value for event in events.Scalars(tag)] for tag in ("grad_norm", "supervised_tokens"))
    assert len(norms) == 6 and min(norms) > 0 and all(count == int(count) > 0 for count in tokens)
    rates = [event.value for event in events.Scalars("lr")]
    assert rates[0] < rates[1]  # the warm-up


def test_a_run_leaves_no_empty_log_and_files_that_others_may_read(workplace, few, monkeypatch):
    old = os.umask(0o027)
    try:
        assert train(workplace, monkeypatch, "modes", **few)
    finally:
        os.umask(old)  # pytest removes the folder later
    folder = workplace.folder / "modes" / "desta25"
    files = [path for path in folder.rglob("*") if path.is_file()]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("model/*") if path.is_file()}
    assert set(modes.values()) == {0o640} and "projector.safetensors" in modes
    assert [path.name for path in files if path.stat().st_size == 0 and path.name != ".run.lock"] == []


def test_the_newest_checkpoints_are_kept_without_validation(workplace, few, monkeypatch):
    more = {**few, "exp_manager.checkpoint_callback_params.every_n_train_steps": 2}
    assert train(workplace, monkeypatch, "newest", **more)
    kept = sorted(path.name for path in (workplace.folder / "newest" / "desta25" / "checkpoints").iterdir())
    assert kept == ["step=4.ckpt", "step=6-last.ckpt", "step=6.ckpt"]


def test_a_run_beyond_its_end_is_refused(workplace, few, monkeypatch):
    assert train(workplace, monkeypatch, "beyond", **few)
    with pytest.raises(ConfigError, match="has done 6 steps, more than trainer.max_steps=4"):
        train(workplace, monkeypatch, "beyond", **{**few, "trainer.max_steps": 4})


def test_a_run_that_trains_nothing_writes_no_model(workplace, few, monkeypatch):
    empty = workplace.folder / "no clips"
    empty.mkdir()
    for line in workplace.few_rows().read_text().splitlines():  # there at the start, and of no use later
        for audio in json.loads(line)["messages"][1]["audios"]:
            (empty / audio["audio"]).parent.mkdir(parents=True, exist_ok=True)
            (empty / audio["audio"]).write_bytes(b"no audio")
    more = {**few, "data.audio_roots.default": f"'{empty}'", "trainer.max_steps": 1}
    with pytest.raises((ConfigError, MissingParts), match="nothing was trained|no clip"):
        train(workplace, monkeypatch, "nothing", **more)
    assert not (workplace.folder / "nothing" / "desta25" / "model").exists()


def test_the_log_file_holds_the_error_that_ended_the_run(tmp_path):
    (tmp_path / "lightning_logs.txt").touch()
    with pytest.raises(RuntimeError), run_log(tmp_path, write=True):
        logging.getLogger("nemo_desta.x").error("step %d", 3)
        raise RuntimeError("the reason")
    said = (tmp_path / "records" / "log.txt").read_text()
    assert "ERROR nemo_desta.x: step 3" in said and "Traceback" in said and "RuntimeError: the reason" in said
    assert not (tmp_path / "lightning_logs.txt").exists()
