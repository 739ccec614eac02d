"""All layouts of an LLM on a number of GPUs, the memory of each, and the layout to choose."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from transformers import PretrainedConfig

from nemo_desta.core.cost import Flops, Speed, llm_flops, num_experts, position_flops
from nemo_desta.errors import ConfigError
from nemo_desta.megatron import audio_memory, llm_memory
from nemo_desta.megatron.audio_memory import FLOAT32, STATES, Perception
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.llm_memory import Load
from nemo_desta.megatron.param_mapping import part_names, part_shape

GIB = 1 << 30
#: Largest number of GPUs that is tried when nothing fits.
MAX_GPUS = 1024


@dataclass(frozen=True)
class Job:
    """An LLM to train through, ``load`` per micro-batch with ``clips`` clips padded to ``secs``, and the GPUs for it.

    ``num_micro_batches``: per step. ``encoded``: share of the clips that the encoders see, on average over the epochs
    (below 1 with a feature cache). ``usable``: bytes of a GPU. ``sequence_parallel``: "on", "off", or "auto"
    (wherever TP > 1).
    """

    llm: PretrainedConfig
    load: Load
    perception: Perception
    speed: Speed
    clips: int
    secs: float
    num_micro_batches: int
    gpus: int
    gpus_per_node: int
    usable: int
    sequence_parallel: str = "auto"
    encoded: float = 1.0

    def with_rows(self, rows: int) -> "Job":
        """The job with ``rows`` per micro-batch, its targets and clips in proportion, and recomputation."""
        old = self.load
        load = replace(old, rows=rows, targets=max(1, old.targets * rows // old.rows), recompute=True)
        return replace(self, load=load, clips=-(-self.clips * rows // old.rows))

    def flops(self, *, recompute: bool) -> Flops:
        """Of a micro-batch."""
        load = self.load
        encoders, projector = self.perception.flops
        return llm_flops(
            self.llm,
            self.position_flops,
            rows=load.rows,
            length=load.length,
            targets=load.targets,
            lora=llm_memory.num_lora_parameters(self.llm, Layout(), 0, load.lora),
            recompute=recompute,
            encoders=self.encoded * self.clips * encoders,
            projector=self.clips * projector,
        )

    @cached_property
    def position_flops(self) -> float:
        """Of a position's forward pass through the LLM's linear layers."""
        return position_flops(((name, part_shape(name, self.llm)) for name in part_names(self.llm)), self.llm)


@dataclass(frozen=True)
class Plan:
    """A layout on the GPUs of a job. ``stages``: bytes on one GPU of each pipeline stage, by kind.

    ``total``: bytes on a GPU of stage ``heaviest``. ``bubble``: share of the time in the pipeline's ends. ``rate``:
    hours of audio per GPU-hour at the job's speed.
    """

    tensor_parallel_size: int
    pipeline_parallel_size: int
    context_parallel_size: int
    expert_parallel_size: int
    sequence_parallel: bool
    data_parallel_size: int
    recompute: bool
    bubble: float
    rate: float
    total: int
    fits: bool
    heaviest: int
    stages: list[dict[str, int]]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """CP, TP, PP."""
        return self.context_parallel_size, self.tensor_parallel_size, self.pipeline_parallel_size

    @property
    def gpus_per_copy(self) -> int:
        return math.prod(self.sizes)


def plans(job: Job) -> Iterator[Plan]:
    """Every layout that `Layout.check` accepts, without and with recomputation (only with it, if the load says so).

    Positions are split (context parallelism) only where no layout fits otherwise.
    """
    for context in _powers(job.gpus):
        fits = False
        for plan in _plans(job, context):
            fits = fits or plan.fits
            yield plan
        if fits:
            return


def _plans(job: Job, context: int) -> Iterator[Plan]:
    """Those of `plans` with one context-parallel size. Tensor and expert parallelism stay inside a node."""
    experts = _powers(job.gpus_per_node) if num_experts(job.llm) else (1,)
    for tensor in range(1, min(job.gpus, job.gpus_per_node) + 1):
        if job.sequence_parallel == "on" and tensor == 1:
            continue
        for pipeline in range(1, job.gpus // (tensor * context) + 1):
            for expert in experts:
                layout = Layout(tensor, pipeline, job.sequence_parallel != "off" and tensor > 1, context, expert)
                try:
                    copies = layout.check(job.llm, job.gpus)
                except ConfigError:
                    continue
                for recompute in (True,) if job.load.recompute else (False, True):
                    yield _plan(job, layout, copies, recompute=recompute)


def _plan(job: Job, layout: Layout, copies: int, *, recompute: bool) -> Plan:
    pipeline = layout.pipeline_parallel_size
    stages = stage_bytes(job, layout, replace(job.load, recompute=recompute))
    heaviest = max(stages, key=lambda stage: stage["total"])
    return Plan(
        **asdict(layout),
        data_parallel_size=copies,
        recompute=recompute,
        bubble=(pipeline - 1) / (job.num_micro_batches + pipeline - 1),
        rate=audio_rate(job, layout, recompute=recompute),
        total=heaviest["total"],
        fits=heaviest["total"] <= job.usable,
        heaviest=heaviest["stage"],
        stages=stages,
    )


def _powers(limit: int) -> list[int]:
    """1, 2, 4, ... up to ``limit``."""
    return [1 << times for times in range(limit.bit_length())]


def audio_rate(job: Job, layout: Layout, *, recompute: bool) -> float:
    """Hours of audio per GPU-hour. Waiting for other ranks, the pipeline's ends aside, is a matter of the MFU."""
    stages = job.flops(recompute=recompute).by_stage(layout.layers_per_stage(job.llm.num_hidden_layers))
    gpus = layout.ranks_per_copy
    secs = job.speed.step_secs(stages, job.num_micro_batches, gpus // layout.pipeline_parallel_size)
    return job.num_micro_batches * job.clips * job.secs / (secs * gpus)


def stage_bytes(job: Job, layout: Layout, load: Load) -> list[dict[str, int]]:
    """Bytes by kind on a GPU of every pipeline stage. ``logits`` and ``working`` are never in memory together."""
    last = layout.pipeline_parallel_size - 1
    found = []
    for stage in range(last + 1):
        kept = llm_memory.kept_bytes(job.llm, layout, stage, load)
        kept += llm_memory.sent_bytes(job.llm, layout, stage, load)
        in_flight = llm_memory.in_flight(layout, stage, job.num_micro_batches)
        encoders, projector, working = _audio_bytes(job, layout, load, in_flight) if stage == 0 else (0, 0, 0)
        lora = llm_memory.num_lora_parameters(job.llm, layout, stage, load.lora)
        held = {
            "weights": llm_memory.num_parameters(job.llm, layout, stage) * load.width,
            "lora": lora * load.width * STATES,
            "activations": in_flight * kept,
            "encoders": encoders,
            "projector": projector,
        }
        passing = {
            "logits": llm_memory.logits_bytes(job.llm, layout, load) if stage == last else 0,
            "working": max(llm_memory.working_bytes(job.llm, layout, load), working),
        }
        total = sum(held.values()) + max(passing.values())
        found.append({"stage": stage, **held, **passing, "total": total})
    return found


def recommend(found: Iterable[Plan]) -> tuple[Plan, str] | None:
    """The plan to choose and the reason; None when nothing fits.

    Recomputation comes last: it runs every layer forward once more, half as much again for a frozen LLM (forward and
    the gradient of the input). Then the fewest GPUs per copy, because copies exchange only the projector's gradients.
    Then the fewest pipeline stages, because stages wait for each other; then the fewest ranks that experts are on,
    because tokens travel between them.
    """
    fitting = [plan for plan in found if plan.fits]
    if not fitting:
        return None
    best = min(
        fitting,
        key=lambda plan: (plan.recompute, plan.gpus_per_copy, plan.pipeline_parallel_size, plan.expert_parallel_size),
    )
    why = f"the fewest GPUs per copy of the LLM ({best.gpus_per_copy})"
    why += " without recomputation" if not best.recompute else "; recomputation is needed to fit"
    if best.expert_parallel_size > 1:
        why += f", the experts spread over {best.expert_parallel_size} GPUs of a node"
    elif best.gpus_per_copy == 1:
        return best, why + ": the LLM fits one GPU, where strategy=ddp does the same"
    if best.pipeline_parallel_size == 1:
        return best, why + ", and no pipeline stages that wait for each other"
    return best, why + f", {best.bubble:.0%} of the time in the pipeline's ends"


def smallest_changes(job: Job) -> Iterator[tuple[str, Plan]]:
    """The smallest changes after which a layout fits: fewer rows per micro-batch, more GPUs; may be none."""
    rows, gpus = job.load.rows, job.gpus
    doubled = [gpus << times for times in range(1, MAX_GPUS.bit_length()) if gpus << times <= MAX_GPUS]
    for fewer in range(rows - 1, 0, -1):
        if best := recommend(plans(job.with_rows(fewer))):
            yield f"micro-batches of {fewer} instead of {rows}, with recomputation", best[0]
            break
    for more in doubled:
        per_node = max(job.gpus_per_node, min(more, 8))
        if best := recommend(plans(replace(job, gpus=more, gpus_per_node=per_node))):
            yield f"{more} GPUs instead of {gpus}", best[0]
            break


def _audio_bytes(job: Job, layout: Layout, load: Load, in_flight: int) -> tuple[int, int, int]:
    """Encoders; projector with its optimiser; temporary memory: on a GPU of stage 0."""
    D, w, audio = job.llm.hidden_size, load.width, job.perception
    ranks = layout.tensor_parallel_size * layout.context_parallel_size
    clips = -(-job.clips // ranks)  # of the rank that encodes the most
    text = 3 * load.rows * load.length * D * w  # embeddings of the ids, of the splice, and the LLM's order of axes
    gathered = 2 * job.clips * audio.vectors * D * w
    working = max(audio_memory.working_bytes(audio.encoders, clips, job.secs, w), text + gathered)
    return audio.frozen * w + in_flight * clips * audio.kept, audio.trained * FLOAT32 * STATES, working
