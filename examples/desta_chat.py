"""Talk to a trained model: ``python examples/desta_chat.py model=<folder> audio=x.wav prompt="Who is speaking?"``.

A conversation without ``prompt``, a file of rows with ``input=... output=...``, a page with ``web=true``; settings are
in conf/use/chat.yaml (``--help`` lists them). For programs: examples/desta_serve.py, an OpenAI-compatible server.
"""

import sys

from omegaconf import DictConfig

from nemo_desta.serving.chat_command import as_overrides, run_chat
from nemo_desta.serving.silence_imports import log_to_stderr, silence_imports

with silence_imports():
    from nemo.core.config import hydra_runner


@hydra_runner(config_path="../conf/use", config_name="chat")
def main(cfg: DictConfig) -> None:
    log_to_stderr()
    try:
        result = run_chat(cfg)
    except (ValueError, OSError, ImportError) as error:  # the user's to mend: the message, without our stack
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; answers that were written stay, and the same command goes on behind them")
    if result is not None:
        print(result)
        sys.exit(not result.ok)


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    with silence_imports():  # Hydra warns about its own next version
        main()
