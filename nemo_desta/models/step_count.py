"""One count of optimiser steps for checkpoints of both training loops."""

from typing import Any


def share_step_count(saved: dict[str, Any]) -> None:
    """Let a Lightning checkpoint count its optimiser steps for both kinds of loop.

    Lightning keeps one count for automatic and one for manual optimisation; the plain model uses the first, the
    Megatron one the second, and either goes on from the other's checkpoint.
    """
    if (fit_loop := saved.get("loops", {}).get("fit_loop")) is None:
        return
    automatic = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = fit_loop["epoch_loop.manual_optimization.optim_step_progress"]
    for span in ("total", "current"):
        for state in ("ready", "completed"):
            steps = max(automatic[span][state], manual[span][state])
            automatic[span][state] = manual[span][state] = steps
