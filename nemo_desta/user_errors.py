"""One place that turns users' mistakes into one line: our own errors, omegaconf's, Hydra's, and those of files.

A command runs under `guard`. A bug keeps its traceback; NEMO_DESTA_TRACEBACK=1 shows all.
Nothing heavy is imported here, so that a misspelt key is answered before torch and NeMo are.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest

#: Set to 1, users' errors keep their traceback.
TRACEBACK = "NEMO_DESTA_TRACEBACK"
#: Exit status after Ctrl-C and after the reader of a pipe has gone: 128 + the signal, as shells have it.
INTERRUPTED = 130
BROKEN_PIPE = 141
PACKAGE = str(Path(__file__).resolve().parent) + os.sep


def one_line(error: BaseException) -> str | None:
    """What ``error`` tells a user, in one line: where, found, expected, nearest; None for a bug.

    Users' errors are all errors that this package defines, a ValueError or KeyError that its code raises, errors of
    omegaconf, Hydra and YAML, and those of the operating system (no such file, a folder, no permission, disk full).
    """
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if "omegaconf.OmegaConfBaseException" in kinds:
        return _omegaconf(error)
    if "hydra.HydraException" in kinds:
        return _hydra(error)
    if "yaml.YAMLError" in kinds:
        return _joined(f"not valid YAML: {error}")
    if type(error).__module__.partition(".")[0] == "nemo_desta":
        return _joined(error)
    if isinstance(error, OSError):
        return _file(error)
    if isinstance(error, ImportError):
        return _joined(error)
    if isinstance(error, KeyError) and _is_ours(error):
        return f"unknown name {', '.join(map(repr, error.args))}"
    if isinstance(error, ValueError) and (_is_ours(error) or "json.JSONDecodeError" in kinds):
        return _joined(error)
    return None


def text_of(error: BaseException) -> str | None:
    """`one_line` after the kind of the error; an error with ``problems``, a list, gets one line for each."""
    line = one_line(error)
    if line is None:
        return None
    kind = type(error)
    label = kind.__name__ if kind.__module__.partition(".")[0] in ("builtins", "nemo_desta") else "ConfigError"
    problems = getattr(error, "problems", None)
    if problems:
        listed = "\n".join(f"  {number}. {_joined(problem)}" for number, problem in enumerate(problems, 1))
        return f"{label}: {str(error).partition(chr(10))[0]}\n{listed}"
    return f"{label}: {line}"


@contextmanager
def guard() -> Iterator[None]:
    """End the process with a user's error on stderr (status 1), or after Ctrl-C (130). Bugs pass with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C; the same command resumes what can be resumed")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        text = text_of(error)
        if text is None or os.environ.get(TRACEBACK) == "1":
            raise
        _say(text)
        sys.exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _joined(text: Any) -> str:
    return " ".join(str(text).split()) or type(text).__name__


def _is_ours(error: BaseException) -> bool:
    """Whether the frame that raised is in this package; functions in C have no frame, their caller counts."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE)


def _file(error: OSError) -> str:
    if error.filename is None or error.errno is None:
        return _joined(error)
    if error.errno == errno.ENOENT:
        return f"no file or folder '{error.filename}'"
    return f"'{error.filename}': {(error.strerror or type(error).__name__).lower()}"


def _omegaconf(error: BaseException) -> str:
    """``key: what is wrong``, without omegaconf's further lines."""
    key = getattr(error, "full_key", None) or ""
    words = str(getattr(error, "msg", None) or error).strip().partition("\n")[0]
    kind = type(error).__name__
    if kind == "InterpolationToMissingValueError":
        return f"'{words.rpartition(': ')[2]}' must be given (it is ???): '{key}' is made from it"
    if kind == "MissingMandatoryValue":
        return f"'{key}' must be given (it is ???)"
    parent, name = getattr(error, "parent_node", None), getattr(error, "key", None)
    if kind in ("ConfigKeyError", "ConfigAttributeError") and name is not None:
        known = list(parent.keys()) if isinstance(parent, Mapping) or hasattr(parent, "keys") else []
        return f"unknown key '{key or name}'.{nearest(str(name), map(str, known))}"
    return _joined(f"{key}: {words}" if key and key not in words else words)


def _hydra(error: BaseException) -> str:
    """Hydra's first lines, with the override or the cause where they lack it, and the nearest option of a group."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = _joined(" ".join(line for line in lines if line and not line.startswith(("See ", "Set the environment"))))
    text, _, searched = text.partition(" Config search path:")
    cause = error.__cause__ and one_line(error.__cause__)
    if cause and text.startswith("Could not override"):
        return cause
    override = getattr(error, "override", None)
    if override is not None and f"'{override}'" not in text:
        return f"'{override}' is no override key=value: {text}"
    options = getattr(error, "options", None)
    if options and getattr(error, "missing_cfg_file", None):
        return f"{text.partition(' Available options')[0]}.{nearest(Path(error.missing_cfg_file).name, options)}"
    if missing := re.fullmatch(r"Cannot find primary config '(.*?)'.*", text):
        folders = re.findall(r"path=file://(\S+)", searched)
        known = {path.stem for folder in folders for path in Path(folder).glob("*.yaml")}
        return f"no config '{missing[1]}'.{nearest(missing[1], known)}"
    return f"{text}: {cause}" if cause and text.startswith("Error") else text
