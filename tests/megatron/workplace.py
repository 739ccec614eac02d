"""The training command in several processes, with a time limit, and killed on demand."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.training.conftest import Workplace

SCRIPT = Path(__file__).with_name("train.py")
TIME_LIMIT = 280  # seconds; a run takes 30 to 60 on two quiet cores, mostly imports, and machines that test are busy


class MegatronWorkplace(Workplace):
    """Runs are named; ``run("a", strategy="megatron", ...)`` again resumes "a"."""

    def command(self, run: str, *flags: str, config: str = "desta25", **more: object) -> list[str]:
        python, _, *rest = super().command(run, *flags, config=config, **more)
        return [python, str(SCRIPT), *rest]

    def run(
        self,
        name: str,
        *flags: str,
        until: Callable[[], bool] | None = None,
        sig: int = signal.SIGKILL,
        time_limit: float = TIME_LIMIT,
        **more: object,
    ) -> tuple[int, str]:
        """Exit status and output; once ``until`` says so, ``sig`` goes to every process (SIGTERM: to the first).

        Raises:
            AssertionError: not finished in ``time_limit`` seconds; killed, with the end of its output.
        """
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command(name, *flags, **more),
                cwd=self.folder,
                env=self.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + time_limit
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline, f"not finished after {time_limit} s\n{log.read_text()[-3000:]}"
                if until is not None and until():
                    until = None
                    process.send_signal(sig) if sig == signal.SIGTERM else os.killpg(process.pid, sig)
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode, log.read_text()

    def finish(self, name: str, *flags: str, **more: object) -> list[dict]:
        """Run to the end; the lines of steps.jsonl."""
        code, output = self.run(name, *flags, **more)
        assert code == 0, output[-4000:]
        return self.steps(name)

    def num_lines(self, name: str) -> int:
        path = self.folder / name / "desta25" / "records" / "steps.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0
