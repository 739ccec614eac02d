"""Training runs in processes that are forked from a server, which has imported everything once."""

import multiprocessing
from multiprocessing.context import ForkServerContext

import torch
from lightning import Callback
from omegaconf import OmegaConf

from nemo_desta.training import fit as fitting


def forkserver(test_module: str) -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([test_module, __name__, "nemo_desta.models.desta"])
    return context


def fit_once(config: dict, *callbacks: Callback) -> None:
    """Train in this process, which must have been started for it, with further callbacks."""
    multiprocessing.set_start_method("fork", force=True)  # of its data workers
    torch.set_num_threads(1)
    own = fitting.build_callbacks
    fitting.build_callbacks = lambda settings, seed: [*own(settings, seed), *callbacks]
    fitting.fit(OmegaConf.create(config))
