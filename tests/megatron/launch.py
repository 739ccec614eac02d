"""Start a function in several processes with a time limit, and get its result from each.

``launch("tests.megatron.test_llm.logits_of", 2, folder=str(folder))`` -> [result of rank 0, result of rank 1]. The
processes find each other by the environment variables of torchrun, so Lightning sees them as well.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

#: Modules that the server of processes imports once.
PRELOADED = ["torch", "tests.megatron.launch", "nemo_desta.megatron.strategy", "nemo_desta.megatron.model"]
REPOSITORY = Path(__file__).parents[2]
SHOWN_CHARACTERS = 4000


def launch(
    function: str,
    world_size: int,
    *,
    time_limit: float = 110.0,
    init_group: bool = True,
    preloaded: bool = True,
    **arguments: Any,
) -> list[Any]:
    """Call ``function(**arguments)`` once per rank, each in a process of its own behind the stand-in for torch.cuda.

    Args:
        function: dotted path; its module must be importable from the repository's root.
        time_limit: seconds until every process is killed.
        init_group: make the gloo process group first; False where the function (Lightning) makes it.
        preloaded: copy a process that has imported NeMo, which is quick; False imports everything under the caller's
            environment (Triton's interpreter is chosen at import).
        arguments: what torch.load reads with weights_only: tensors, numbers, strings, lists, dicts.

    Returns:
        The results by rank, of the same kinds.

    Raises:
        AssertionError: a rank failed or the time ran out; with the end of its output.
    """
    from torch.distributed import TCPStore

    # The store lives here, on a port that the system picks: no port is guessed, none can be taken meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save({"function": function, "init_group": init_group, "arguments": arguments}, work / "task.pt")
        processes = [_start(rank, world_size, store.port, work, preloaded) for rank in range(world_size)]
        try:
            failed = _wait(processes, time.monotonic() + time_limit)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()  # it may not have a session of its own yet
                process.join()
        if failed is not None:
            ranks = failed or range(world_size)
            why = f"rank {failed[0]} failed" if failed else f"not finished after {time_limit:.0f} s, killed"
            raise AssertionError(f"{function}: {why}\n" + "\n".join(_output(work, rank) for rank in ranks))
        return [torch.load(work / f"result{rank}.pt", weights_only=True) for rank in range(world_size)]


def _start(rank: int, world_size: int, port: int, work: Path, preloaded: bool) -> BaseProcess:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    context = multiprocessing.get_context("forkserver" if preloaded else "spawn")
    context.set_forkserver_preload(PRELOADED)  # importing NeMo takes longer than most cases
    process = context.Process(target=_run, args=(work, rank, environment), daemon=True)
    process.start()
    return process


def _wait(processes: list[BaseProcess], deadline: float) -> list[int] | None:
    """Ranks that failed, an empty list when the time ran out, None when all went well."""
    while True:
        codes = [process.exitcode for process in processes]
        if failed := [rank for rank, code in enumerate(codes) if code not in (None, 0)]:
            return failed
        if all(code == 0 for code in codes):
            return None
        if time.monotonic() > deadline:
            return []
        time.sleep(0.05)


def _output(work: Path, rank: int) -> str:
    text = (work / f"output{rank}.txt").read_text(errors="replace")
    return f"--- rank {rank} ---\n{text[-SHOWN_CHARACTERS:]}"


def _run(work: Path, rank: int, environment: dict[str, str]) -> None:
    """One rank with its caller's environment, in a session of its own, with its output in a file."""
    os.setsid()
    os.chdir(REPOSITORY)
    output = os.open(work / f"output{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()  # the server of processes has the environment of its first caller
    os.environ.update(environment)
    rank_zero_only.rank = rank  # read from the environment when it was imported
    from tests.megatron.cuda_standin import cuda_standin

    task = torch.load(work / "task.pt", weights_only=True)
    torch.set_num_threads(1)
    module, _, name = task["function"].rpartition(".")
    with cuda_standin():
        if task["init_group"]:
            torch.distributed.init_process_group("gloo")
        result = getattr(importlib.import_module(module), name)(**task["arguments"])
        torch.save(result, work / f"result{rank}.pt")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
