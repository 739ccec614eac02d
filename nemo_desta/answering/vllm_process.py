"""What vLLM's client does not notice by itself: the death of vLLM's own process."""

import multiprocessing.connection
import threading
from typing import Any


def end_waiting_with_the_process(client: Any) -> None:
    """Let vLLM's ``step`` raise when vLLM's own process is killed, such as by the system for lack of memory.

    ``client``: the engine's connection to that process. vLLM 0.32 ends the connection then, but ``step`` still waits
    for outputs.
    """
    if not hasattr(client, "outputs_queue"):
        return  # vLLM runs in this process
    from vllm.v1.engine.exceptions import EngineDeadError

    processes, outputs = client.resources.engine_manager.processes, client.outputs_queue

    def wait() -> None:
        multiprocessing.connection.wait([process.sentinel for process in processes])
        outputs.put_nowait(EngineDeadError())

    threading.Thread(target=wait, name="vLLM's process", daemon=True).start()
