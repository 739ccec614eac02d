"""What holds for every test: no network, one thread for torch, fixed seeds."""

import functools
import gc
import importlib.util
import ipaddress
import logging
import os
import random
import socket
import ssl
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest

# Before torch and huggingface_hub are imported, and for the processes that tests start.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


class NetworkError(RuntimeError):
    """A test tried to reach another machine. Not an OSError: a library would take that for a bad connection."""


def _local_only(connect: Callable) -> Callable:
    def guarded(sock: socket.socket, address: Any) -> Any:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise NetworkError(f"tests must not use the network, found a connection to {address[0]}:{address[1]}")
        return connect(sock, address)

    return guarded


def _is_local(host: str) -> bool:
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


socket.socket.connect = _local_only(socket.socket.connect)
socket.socket.connect_ex = _local_only(socket.socket.connect_ex)

# Every HTTP client, even of a plain http address, loads the trusted certificates: 60 ms of work, here done once.
ssl.create_default_context = functools.cache(ssl.create_default_context)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports create millions of objects that stay: no garbage collection looks at them, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same random numbers for each test, whatever ran before; nothing is imported for it."""
    if item.get_closest_marker("gpu") and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM, in an environment of its own: make test-vllm")
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """NeMo's model section over tiny parts on disk."""
    from nemo_desta.testing.models import tiny_config  # late: it imports torch and transformers

    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def log_levels() -> Generator[None, None, None]:
    """A command in a test sets levels, of pytest's handlers too; the next test starts with those from before."""
    found = (logging.root, logging.getLogger("nemo_desta"), *logging.root.handlers)
    before = [one.level for one in found]
    yield
    for one, level in zip(found, before, strict=True):
        one.setLevel(level)
