"""Kills at every step and at random: the resumed run equals the uninterrupted run, to the bytes of the weights."""

import hashlib
import json
import random
import time
from pathlib import Path

import pytest
from lightning import Callback
from omegaconf import OmegaConf

from nemo_desta.training import fit as fitting
from tests.training.processes import fit_once, forkserver

KILLS = 21
SMALL = {
    "trainer.max_steps": 12,  # 3 epochs
    "data.validation_ds.num_workers": 0,
    "callbacks.sample_rows": 0,
    "exp_manager.create_tensorboard_logger": "false",
}


class Kill(BaseException):
    """Ends a run without a chance to save anything."""


class KillAt(Callback):
    """Raises at a hook once ``step`` steps are done, by default when the next one is to begin."""

    def __init__(self, step: int, hook: str = "on_train_batch_start") -> None:
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer, *_: object) -> None:
        if trainer.global_step >= self.step and not trainer.sanity_checking:
            raise Kill


@pytest.fixture(scope="module")
def few(workplace):
    valid = workplace.folder / "valid" / "rows.jsonl"
    validation = (
        f"{{valid: {{input_cfg: [{{type: desta, rows: {valid}, audio_roots: {{default: {valid.parent}}}}}]}}}}"
    )
    return {
        **SMALL,
        "data.train_ds.input_cfg.0.rows": workplace.few_rows(),
        "+data.validation_ds.datasets": validation,
    }


def train(workplace, monkeypatch, run: str, kill: Callback | None = None, **more: object) -> bool:
    """One process' life; whether it came to the end."""
    own = fitting.build_callbacks
    extra = [] if kill is None else [kill]
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "build_callbacks", lambda settings, seed: [*own(settings, seed), *extra])
        try:
            fitting.fit(workplace.config(run, **more))
        except Kill:
            return False
    return True


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def outcome(workplace, run: str) -> dict:
    """Every loss, the weights, what the run says of itself, and which checkpoints it kept."""
    folder = workplace.folder / run / "desta25"
    record = json.loads((folder / "model" / "training.json").read_text())
    del record["bad_rows"]  # counts validations, and one that is cut off comes again
    return {
        "steps": workplace.steps(run),
        "weights": digest(folder / "model" / "projector.safetensors"),
        "record": record,
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`trainer.ckpt_path")
@pytest.mark.parametrize(("every", "validate"), [(1, 100), (2, 2), (3, 4), (4, 4), (4, 100), (5, 3)])
def test_a_run_that_is_killed_after_every_step_is_the_uninterrupted_run(workplace, few, monkeypatch, every, validate):
    more = {
        **few,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": every,
        "trainer.val_check_interval": validate,
    }
    whole, killed = f"whole-{every}-{validate}", f"killed-{every}-{validate}"
    assert train(workplace, monkeypatch, whole, **more)
    assert len(workplace.steps(whole)) == 12
    for step in range(1, 12):
        assert not train(workplace, monkeypatch, killed, KillAt(step), **more), step
    assert train(workplace, monkeypatch, killed, **more)
    assert outcome(workplace, killed) == outcome(workplace, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`trainer.ckpt_path")
@pytest.mark.parametrize(
    ("hook", "validate"),
    [("on_validation_start", 4), ("on_validation_batch_end", 4), ("on_validation_end", 4), ("on_fit_end", 5)],
)
def test_a_kill_after_the_last_save_leaves_nothing_out(workplace, few, monkeypatch, hook, validate):
    """All steps are done and saved; the last validation, the model folder and its card are still to come."""
    more = {
        **few,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": 1,
        "trainer.val_check_interval": validate,
    }
    whole, killed = f"whole-{hook}", f"killed-{hook}"
    assert train(workplace, monkeypatch, whole, **more)
    assert not train(workplace, monkeypatch, killed, KillAt(12, hook), **more)
    assert train(workplace, monkeypatch, killed, **more)
    wanted = outcome(workplace, whole)
    assert wanted["record"]["validation"]
    assert outcome(workplace, killed) == wanted
    assert train(workplace, monkeypatch, whole, **more)  # the same command when all is done
    assert outcome(workplace, whole) == wanted


@pytest.mark.slow
def test_random_sigkills_change_nothing(workplace, few, capsys):
    """Real kills at random moments: at the start, in a step, in a save, in a validation, in the last write."""
    context = forkserver(__name__)
    rng, kills, lives, runs = random.Random(13), 0, 0, 0

    def live(run: str, more: dict, secs: float | None = None) -> bool:
        """One process; whether it came to its end before it was killed."""
        config = OmegaConf.to_container(workplace.config(run, **more), resolve=True)
        process = context.Process(target=fit_once, args=(config,))
        process.start()
        process.join(secs)
        if process.exitcode is None:
            process.kill()
            process.join()
            return False
        assert process.exitcode == 0, "a resume failed"
        return True

    assert live("warm", {**few, "trainer.max_steps": 1})  # the server imports everything, which takes a while
    for every, validate in [(1, 4), (2, 100), (4, 4)]:
        more = {
            **few,
            "exp_manager.checkpoint_callback_params.every_n_train_steps": every,
            "trainer.val_check_interval": validate,
        }
        started = time.monotonic()
        assert live(whole := f"whole-sigkill-{every}", more)
        secs, wanted = time.monotonic() - started, kills + KILLS // 3
        while kills < wanted:
            runs, ended = runs + 1, False
            while not ended:
                ended = live(f"killed-sigkill-{runs}", more, rng.uniform(0.1, 0.8) * secs if kills < wanted else None)
                lives, kills = lives + 1, kills + (not ended)
            assert outcome(workplace, f"killed-sigkill-{runs}") == outcome(workplace, whole)
    with capsys.disabled():
        print(f"\ntraining: {kills} kills, {lives - runs} resumes, {runs} runs identical in losses and weight bytes")
    assert kills >= 20
