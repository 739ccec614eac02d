"""The jobs of ``desta``: what each does, the function that does it, and its configs."""

import logging
from typing import NamedTuple


class Command(NamedTuple):
    """One job.

    ``run``: ``module:function``. With ``config`` it takes the composed config and may return a result to print, whose
    attribute ``ok`` says whether the job succeeded; without, it takes the words of the command line and returns the
    exit status. ``folder``: of the configs, inside conf/. ``more``: overrides that make it another job. ``level``: of
    the log lines on the screen.
    """

    help: str
    run: str
    config: str = ""
    folder: str = ""
    more: tuple[str, ...] = ()
    level: int = logging.WARNING


FIT = "nemo_desta.training.command:train"
TRAIN = {"config": "desta25", "level": logging.INFO}

COMMANDS = {
    "new": Command("write a config and a card for your own corpus", "nemo_desta.recipes.new_project:main"),
    "card": Command("propose a card for a table of clips", "nemo_desta.recipes.corpora.card_command:main"),
    "generate": Command(
        "make training rows from a labelled corpus; also report, check and shar of rows",
        "nemo_desta.recipes.commands:run_command",
        config="self_generate",
        folder="recipes",
        level=logging.INFO,
    ),
    "check": Command("check a training config, its data and weights", FIT, **TRAIN, more=("check=true",)),
    "train": Command("train a model; the same command resumes", FIT, **TRAIN),
    "features": Command(
        "encode all clips of a training config once, for data.feature_cache",
        "nemo_desta.training.feature_command:run_features",
        **TRAIN,
    ),
    "chat": Command(
        "ask a model: one answer, a conversation, a file of rows, a web page",
        "nemo_desta.serving.chat_command:run_chat",
        config="chat",
        folder="use",
    ),
    "serve": Command(
        "serve a model over OpenAI's chat API",
        "nemo_desta.serving.serve_command:run_serve",
        config="serve",
        folder="use",
        level=logging.INFO,
    ),
    "evaluate": Command(
        "score a model on benchmarks or own rows",
        "nemo_desta.evaluation.command:run_evaluate",
        config="evaluate",
        folder="use",
    ),
    "export": Command(
        "write a model as one folder to share, or import released weights",
        "nemo_desta.sharing.export_command:run_export",
        config="export",
        folder="use",
    ),
    "plan": Command("find the parallel layout of an LLM on your GPUs", "nemo_desta.megatron.plan:main"),
    "fetch": Command("download pre-trained encoders, verified by checksum", "nemo_desta.perception.download:main"),
    "cache": Command(
        "list or remove copies of rows by URL, and features",
        "nemo_desta.data.cache_command:main",
    ),
    "demo": Command("run the whole pipeline on two cores, on made-up data", "nemo_desta.demo.run:main"),
    "doctor": Command(
        "list the installed stack and what is missing; --weights: which weights are here, --verified: what was run",
        "nemo_desta.doctor:main",
    ),
}
