"""Recipes on a Ray cluster: Ray Data assigns shards to workers, and each worker has its own engine.

Ray restarts a worker that dies; the worker resumes after the last row in its journal. All nodes must see the output
folder, and its file locks must work (local disks, NFSv4, Lustre with flock).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.progress import Progress
from nemo_desta.recipes.build import build_engines, build_input, build_prompts, build_stage, dtype_of, freeze_dates
from nemo_desta.recipes.pipeline import RecipeFolder, run_shards
from nemo_desta.recipes.settings import parse_recipe


class ShardWorker:
    """A worker of Ray Data. It builds the recipe once, then makes the rows of its shards."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        config = parse_recipe(plain)
        corpora, roots = build_input(config)
        self.folder = RecipeFolder(config.output)
        self.engines = build_engines(config)
        self.folder.remember("llm_revision", self.engines[0].revision)
        self.folder.remember("llm_dtype", dtype_of(self.engines[0]))
        freeze_dates(self.folder, self.engines)
        self.stage = build_stage(config, corpora, roots, build_prompts(config), self.engines)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """``batch["shard"]``: numbers of shards. They are returned when the rows are on the disk."""
        numbers = [int(number) for number in batch["shard"]]
        concurrency = self.engines[0].concurrency
        run_shards(self.folder, self.stage, numbers, concurrency=concurrency, engines=self.engines, progress=False)
        return {"shard": numbers}


def run_on_ray(
    plain: Mapping[str, Any],
    folder: RecipeFolder,
    numbers: Sequence[int],
    *,
    num_workers: int = 2,
    shards_per_task: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
) -> None:
    """Make the rows of shards ``numbers`` with ``num_workers`` workers, each of ``num_cpus`` and ``num_gpus``.

    ``address``: of a running cluster; None for the environment's cluster or a local one. ``plain``: the recipe's
    config. Every worker builds its parts from it, so paths must be the same on all nodes.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("runner=ray needs Ray Data: pip install 'nemo_desta[cluster]'") from error
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    done = shards.map_batches(
        ShardWorker,
        fn_constructor_args=(dict(plain),),
        batch_size=shards_per_task,
        compute=ray.data.ActorPoolStrategy(size=num_workers),  # restarts workers and their tasks
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    with Progress("shards", len(numbers), unit="shards") as bar:
        for batch in done.iter_batches(batch_size=None):
            bar.update(len(batch["shard"]))
