"""Talk to a trained model: ``python examples/desta_chat.py model=<folder> audio=x.wav prompt="Who is speaking?"``.

Without ``prompt`` it opens a conversation in the terminal, ``input=... output=...`` answers a file of rows, and
``web=true`` opens a web page. Settings: conf/use/chat.yaml (``--help`` lists them). An OpenAI-compatible server for
programs: examples/desta_serve.py.
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
    except (ValueError, OSError, ImportError) as error:  # user errors: the message without a stack trace
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; finished answers are saved, and the same command resumes after them")
    if result is not None:
        print(result)
        sys.exit(not result.ok)


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    with silence_imports():  # Hydra warns about its own next version
        main()
