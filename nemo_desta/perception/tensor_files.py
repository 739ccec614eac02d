"""Read untrusted torch files as tensors and plain types, never as code; write safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_desta.errors import ConfigError

#: The part of torch's long message that names what it refused.
_UNSUPPORTED = re.compile(r"Unsupported (global|class|operand|operation)[^\n]*?(?= was| is|$)", re.M)


def load_tensors(path: str | Path, **options: Any) -> Any:
    """Load a file of `torch.save` on the CPU with ``weights_only=True``. ``options`` go to `torch.load`.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: a file that holds more than tensors and plain types, or that is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file '{path}'")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # torch raises many types, for damaged files and for files that would run code
        text = str(error).strip()
        reason = found[0] if (found := _UNSUPPORTED.search(text)) else text.partition("\n")[0] or "no message"
        raise ConfigError(
            f"'{path}' is not opened: it holds more than tensors and plain types, which can run code, or is damaged "
            f"({type(error).__name__}: {reason}). Its authors can save the tensors alone: "
            "torch.save(model.state_dict(), ...)"
        ) from error


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that may be read as the umask says; the library's own are for their owner alone."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)
