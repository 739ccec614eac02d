"""Every way to put an LLM on so many GPUs, what each takes per GPU, and which one to take."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from nemo_desta.errors import ConfigError
from nemo_desta.megatron import plan_ears, plan_llm
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.plan_llm import Load

GIB = 1 << 30
#: GPUs up to which a fit is looked for when there is none.
MAX_GPUS = 1024


@dataclass(frozen=True)
class Machine:
    """``memory`` and ``reserve``: GiB per GPU, and how much of it is left to CUDA, NCCL and the allocator."""

    gpus: int
    gpus_per_node: int
    memory: float
    reserve: float

    @property
    def usable(self) -> int:
        return int((self.memory - self.reserve) * GIB)


@dataclass(frozen=True)
class Audio:
    """Clips of a micro-batch, the length that they are padded to, and what hears them."""

    encoders: tuple[plan_ears.Encoder, ...]
    clips: int
    secs: float


@dataclass(frozen=True)
class StageBytes:
    """Bytes on one GPU of a pipeline stage. ``logits`` and ``working`` never stand beside each other."""

    stage: int
    weights: int
    activations: int
    logits: int
    encoders: int
    projector: int
    working: int

    @property
    def total(self) -> int:
        held = self.weights + self.activations + self.encoders + self.projector
        return held + max(self.logits, self.working)


@dataclass(frozen=True)
class Plan:
    """A layout on a machine. ``copies``: its data-parallel size. ``stages``: bytes of each."""

    layout: Layout
    copies: int
    recompute: bool
    bubble: float
    stages: tuple[StageBytes, ...]

    @property
    def heaviest(self) -> StageBytes:
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def gpus_per_copy(self) -> int:
        return self.layout.tensor_parallel_size * self.layout.pipeline_parallel_size


def plans(
    config: PretrainedConfig,
    machine: Machine,
    load: Load,
    audio: Audio,
    *,
    num_micro_batches: int,
    sequence_parallel: str = "auto",
) -> Iterator[Plan]:
    """Every layout that `Layout.check` lets through, without recomputation and with (only with, if ``load`` says so).

    ``sequence_parallel``: "on", "off", or "auto": wherever there is tensor parallelism.
    """
    for tensor in range(1, min(machine.gpus, machine.gpus_per_node) + 1):
        if sequence_parallel == "on" and tensor == 1:
            continue
        for pipeline in range(1, machine.gpus // tensor + 1):
            layout = Layout(tensor, pipeline, sequence_parallel=sequence_parallel != "off" and tensor > 1)
            try:
                copies = layout.check(config, machine.gpus)
            except ConfigError:
                continue
            for recompute in (True,) if load.recompute else (False, True):
                stages = stage_bytes(config, layout, replace(load, recompute=recompute), audio, num_micro_batches)
                bubble = (pipeline - 1) / (num_micro_batches + pipeline - 1)
                yield Plan(layout, copies, recompute, bubble, stages)


def stage_bytes(
    config: PretrainedConfig, layout: Layout, load: Load, audio: Audio, num_micro_batches: int
) -> tuple[StageBytes, ...]:
    """Bytes per GPU of every pipeline stage."""
    last = layout.pipeline_parallel_size - 1
    found = []
    for stage in range(last + 1):
        kept = plan_llm.kept_bytes(config, layout, stage, load) + plan_llm.handed_bytes(config, layout, stage, load)
        flying = plan_llm.in_flight(layout, stage, num_micro_batches)
        ears = _ears(config, layout, load, audio, flying) if stage == 0 else (0, 0, 0)
        found.append(
            StageBytes(
                stage=stage,
                weights=plan_llm.weight_numbers(config, layout, stage) * load.width,
                activations=flying * kept,
                logits=plan_llm.logits_bytes(config, layout, load) if stage == last else 0,
                encoders=ears[0],
                projector=ears[1],
                working=max(plan_llm.working_bytes(config, layout, load), ears[2]),
            )
        )
    return tuple(found)


def recommend(found: list[Plan], machine: Machine) -> tuple[Plan, str] | None:
    """The plan to take and why; None when nothing fits.

    Recomputation runs every layer forward once more, half as much again for a frozen LLM (forward and the gradient of
    the input): it comes last. Then the fewest GPUs per copy: copies need nothing from each other but the projector's
    gradients. Then the fewest pipeline stages, which wait for each other.
    """
    fitting = [plan for plan in found if plan.heaviest.total <= machine.usable]
    if not fitting:
        return None
    best = min(fitting, key=lambda plan: (plan.recompute, plan.gpus_per_copy, plan.layout.pipeline_parallel_size))
    why = f"the fewest GPUs per copy of the LLM ({best.gpus_per_copy})"
    why += " without recomputation" if not best.recompute else "; recomputation is needed to fit"
    if best.gpus_per_copy == 1:
        return best, why + ": the LLM fits one GPU, where strategy=ddp does the same"
    if best.layout.pipeline_parallel_size == 1:
        return best, why + ", and no pipeline stages that wait for each other"
    return best, why + f", {best.bubble:.0%} of the time in the pipeline's ends"


def smallest_that_would(
    config: PretrainedConfig, machine: Machine, load: Load, audio: Audio, *, num_micro_batches: int, **more: str
) -> list[tuple[str, Plan]]:
    """What to change so that something fits, when nothing does: fewer rows at a time, or more GPUs; may be empty."""
    found = []
    for rows in range(load.rows - 1, 0, -1):
        smaller = replace(load, rows=rows, targets=max(1, load.targets * rows // load.rows), recompute=True)
        fewer = replace(audio, clips=-(-audio.clips * rows // load.rows))
        ways = list(plans(config, machine, smaller, fewer, num_micro_batches=num_micro_batches, **more))
        if best := recommend(ways, machine):
            found.append((f"micro-batches of {rows} instead of {load.rows}, with recomputation", best[0]))
            break
    gpus = machine.gpus
    while (gpus := gpus * 2) <= MAX_GPUS:
        larger = replace(machine, gpus=gpus, gpus_per_node=max(machine.gpus_per_node, min(gpus, 8)))
        ways = list(plans(config, larger, load, audio, num_micro_batches=num_micro_batches, **more))
        if best := recommend(ways, larger):
            found.append((f"{gpus} GPUs instead of {machine.gpus}", best[0]))
            break
    return found


def _ears(config: PretrainedConfig, layout: Layout, load: Load, audio: Audio, flying: int) -> tuple[int, int, int]:
    """Encoders, projector with its optimiser, and what comes and goes, on a GPU of stage 0."""
    D, w = config.hidden_size, load.width
    clips = -(-audio.clips // layout.tensor_parallel_size)  # a rank's share, the largest
    kept = plan_ears.kept_bytes(audio.encoders, clips, audio.secs, D, w)
    frozen = sum(encoder.numbers for encoder in audio.encoders) * w
    trained = plan_ears.projector_numbers(audio.encoders, D)
    text = 3 * load.rows * load.length * D * w  # embeddings of the ids, of the splice, and the LLM's order of axes
    gathered = 2 * int(audio.clips * audio.secs * plan_ears.TOKENS_PER_SECOND) * D * w
    passing = max(plan_ears.working_bytes(audio.encoders, clips, audio.secs, w), text + gathered)
    return frozen + flying * kept, trained * plan_ears.TRAINED, passing
