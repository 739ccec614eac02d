"""The plan: the units of a recipe, divided into shards once, so that any process can work on any shard."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from tqdm import tqdm

from nemo_desta.recipes.pipeline.folder import RecipeFolder, dump_line, write_json, write_lines


def write_plan(
    folder: RecipeFolder, units: Iterable[Mapping[str, Any]], *, shard_size: int, progress: bool = True
) -> int:
    """Divide ``units`` into shards of ``shard_size`` unless the folder has a plan; returns the number of shards.

    One process writes, others wait for it. A plan that a kill left half-written is written again. A complete plan is
    never changed, so rows do not move between shards when the corpus grows later.

    Raises:
        ValueError: there are no units.
    """
    with folder.lock("plan", wait=True):
        shards = folder.num_shards()
        if shards is not None:
            return shards
        shutil.rmtree(folder.plan, ignore_errors=True)
        folder.plan.mkdir(parents=True)
        shards, count = 0, 0
        with tqdm(desc="reading the corpus", unit="clip", disable=not progress, leave=False) as bar:
            for part in _parts(iter(units), shard_size):
                write_lines(folder.plan_file(shards), map(dump_line, part))
                shards, count = shards + 1, count + len(part)
                bar.update(len(part))
        if not count:
            raise ValueError("the corpus holds no clips of the wanted splits; nothing to do")
        write_json(folder.plan / "plan.json", {"shards": shards, "units": count})
        return shards


def _parts(units: Iterator[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    while part := list(islice(units, size)):
        yield part
