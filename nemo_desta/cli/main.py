"""``desta <job> ...``: one command for every job. ``python -m nemo_desta`` and the scripts in examples/ are the same.

A job's module is imported when the job is run, so help and a mistake in a name cost no import of torch or NeMo.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from nemo_desta.cli.commands import COMMANDS
from nemo_desta.cli.configured import run_configured
from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.screen import log_to_stderr, silence_imports
from nemo_desta.user_errors import guard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that ``argv`` (default: the command line) names; returns the exit status. Users' mistakes end it
    with one line on standard error."""
    with guard():
        return _run(list(sys.argv[1:] if argv is None else argv))


def script(job: str, *words: str) -> None:
    """The main of a script in examples/ that does one job. ``words`` come before those of its command line."""
    sys.exit(main([job, *words, *sys.argv[1:]]))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = words
    if name == "--version":
        from nemo_desta.doctor import versions

        print(versions())
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"desta has no job '{name}'.{nearest(name, COMMANDS)}")
    command = COMMANDS[name]
    if not command.config:
        return _resolve(command.run)(rest) or 0
    log_to_stderr(command.level)
    return run_configured(name, command, rest, lambda config: _ended(_resolve(command.run)(config)))


def _resolve(target: str) -> Callable[..., Any]:
    module, function = target.split(":")
    with silence_imports():
        return getattr(import_module(module), function)


def _ended(result: Any) -> int:
    """The exit status of a job that returned ``result``, which is printed."""
    for handler in logging.root.handlers:
        handler.flush()
    if result is not None:
        print(result)
    return int(getattr(result, "ok", True) is False)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "Give a frozen text LLM ears.",
            "",
            "  desta <job> [settings]",
            "",
            *(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()),
            "",
            "desta <job> --help lists the settings of a job; desta --version the stack, for bug reports.",
        ]
    )
