"""A kill loses nothing that was saved: the resumed run equals the uninterrupted one, row by row and loss by loss."""

import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.slow


def wait_for_steps(workplace, run, count, process):
    """Until ``count`` steps are logged; fails when the run ends before."""
    path = workplace.folder / run / "desta25" / "records" / "steps.jsonl"
    for _ in range(6000):  # five minutes: machines that run tests are busy
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()[0][-2000:]
        time.sleep(0.05)
    raise AssertionError("the run did not get that far")


def interrupted(workplace, run, sig, after, **more):
    process = subprocess.Popen(
        workplace.command(run, **more),
        cwd=workplace.folder,
        env=workplace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_steps(workplace, run, after, process)
    process.send_signal(sig)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


@pytest.fixture(scope="module")
def reference(workplace):
    """40 rows, 4 a batch: 14 steps cross an epoch's end."""
    done = workplace.train("whole")
    assert done.returncode == 0, done.stderr[-3000:]
    return workplace.steps("whole")


@pytest.mark.parametrize(("num_workers", "after"), [(0, 5), (2, 8)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(workplace, reference, num_workers, after):
    run, more = f"killed{num_workers}", {"data.train_ds.num_workers": num_workers}
    code, _ = interrupted(workplace, run, signal.SIGKILL, after, **more)
    assert code == -signal.SIGKILL
    saved = list((workplace.folder / run / "desta25" / "checkpoints").glob("*last.ckpt"))
    assert saved, "nothing was saved before the kill"
    done = workplace.train(run, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert workplace.steps(run) == reference


def test_sigterm_saves_and_exits_cleanly_and_the_run_goes_on(workplace, reference):
    code, printed = interrupted(workplace, "asked", signal.SIGTERM, 4)
    assert code == 0, printed[-3000:]
    assert "SIGTERM at step" in printed
    stopped_at = len(workplace.steps("asked"))
    assert stopped_at < 14
    done = workplace.train("asked")
    assert done.returncode == 0, done.stderr[-3000:]
    assert workplace.steps("asked") == reference


def test_gradient_accumulation_resumes_inside_its_window_exactly(workplace):
    more = {"trainer.accumulate_grad_batches": 3, "trainer.max_steps": 6}
    done = workplace.train("whole_acc", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    interrupted(workplace, "killed_acc", signal.SIGKILL, 12, **more)
    done = workplace.train("killed_acc", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert workplace.steps("killed_acc") == workplace.steps("whole_acc")
