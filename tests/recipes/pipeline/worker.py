"""A recipe in a process of its own, to be killed: `python worker.py FOLDER UNITS DELAY_SECS`."""

import asyncio
import random
import sys
from collections.abc import Mapping
from typing import Any

from nemo_desta.recipes.items import Rejection, Wanted
from nemo_desta.recipes.pipeline import Outcome, RecipeFolder, finish, run_shards, write_plan

RECIPE = {"seed": 3, "corpus": "toy"}


class Shout:
    """Two rows per unit: one shouts the unit's name after a random while, every seventh unit is refused."""

    rows_per_unit = 2

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.made: list[str] = []

    def wanted(self, unit: Mapping[str, Any]) -> list[Wanted]:
        bad = Rejection("unlucky", f"unit {unit['id']}") if unit["number"] % 7 == 6 else None
        return [Wanted(f"{unit['id']}-p{k}", {**unit, "k": k}, bad) for k in range(2)]

    async def make(self, item: Mapping[str, Any]) -> Outcome:
        if self.delay:
            await asyncio.sleep(random.random() * 2 * self.delay)
        row_id = f"{item['id']}-p{item['k']}"
        self.made.append(row_id)
        row = {"id": row_id, "response": f"{item['id'].upper()}! é", "split": "valid" if item["k"] else "train"}
        return Outcome(row, None, 1, 5, 7)


def units(count: int):
    return ({"id": f"u{i:05d}", "number": i} for i in range(count))


def run(path: str, count: int, stage: Shout, *, numbers=None, shard_size: int = 50, concurrency: int = 32):
    folder = RecipeFolder(path)
    folder.claim(RECIPE)
    if not folder.finished:
        shards = write_plan(folder, units(count), shard_size=shard_size, progress=False)
        run_shards(folder, stage, numbers or range(shards), concurrency=concurrency, progress=False)
    return finish(folder, progress=False, rows_per_file=400)


if __name__ == "__main__":
    print(run(sys.argv[1], int(sys.argv[2]), Shout(float(sys.argv[3]))))
