"""One count of optimiser steps in checkpoints, for automatic and manual optimisation."""

from typing import Any


def share_step_count(saved: dict[str, Any]) -> None:
    """Set both of Lightning's counts of optimiser steps in a checkpoint to the larger one.

    Lightning has one count for automatic and one for manual optimisation; the plain model uses the first, the Megatron
    model the second, and either can resume from the other's checkpoint.
    """
    if (fit_loop := saved.get("loops", {}).get("fit_loop")) is None:
        return
    automatic = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = fit_loop["epoch_loop.manual_optimization.optim_step_progress"]
    for span in ("total", "current"):
        for state in ("ready", "completed"):
            steps = max(automatic[span][state], manual[span][state])
            automatic[span][state] = manual[span][state] = steps
