"""A recipe's output folder: its layout, the recipe that it belongs to, its plan, and atomic writes.

recipe.json                      the settings that determine its rows
shards/plan/00000.jsonl          the units of each shard, then plan.json
shards/00000.part                settled rows of a shard in progress, in the order of their completion
shards/00000.jsonl               a finished shard, in the plan's order
rows/<split>-00000.jsonl         the rows, once all shards are finished; the shards are removed then
rejected/<split>-00000.jsonl     rejected rows, with the reason
summary.json                     counts; its presence says that the recipe has ended
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from nemo_desta.data.jsonl_log import json_line, try_lock
from nemo_desta.progress import Progress

#: Our own files that hold no content: files under a temporary name, and locks.
OWN_FILES = re.compile(r"\..+\.(\d+|lock)")


class RecipeMismatch(ValueError):
    """The folder holds rows made with other settings; the message names the keys that differ."""


class RecipeFolder:
    """The folder at ``path``; nothing is created before `claim`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.summary = self.path / "summary.json"
        self.shards = self.path / "shards"
        self.plan = self.shards / "plan"
        self.rows = self.path / "rows"
        self.rejected = self.path / "rejected"

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Begin the recipe, or resume the same one. Raises `RecipeMismatch` if the folder's recipe differs, or if it
        holds something else."""
        for folder in (self.path, self.shards, self.plan, self.rows, self.rejected):
            remove_leftovers(folder)
        recipe = json.loads(json.dumps(recipe))
        for _ in range(50):  # another process may be claiming a folder that is not empty right now
            if self.recipe.exists() or all(OWN_FILES.fullmatch(item.name) for item in self.path.glob("*")):
                break
            time.sleep(0.02)
        else:
            raise RecipeMismatch(f"{self.path} is not empty and holds no recipe.json; give a new folder as output")
        if not self.recipe.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.recipe, recipe)
            return
        found = json.loads(self.recipe.read_text(encoding="utf-8"))
        if differing := sorted(_differences(found, recipe)):
            raise RecipeMismatch(
                f"{self.path} holds rows of another recipe; these settings differ: {'; '.join(differing)}. "
                "Give the same settings to resume, or another output folder"
            )

    def remember(self, key: str, value: Any) -> None:
        """Add a value to the recipe that is only known during the run, such as the revision of the LLM. Raises
        `RecipeMismatch` if the recipe holds another value."""
        if (kept := self.settle(key, value)) != value:
            what = f"{key} {kept!r}, now it is {value!r}"
            raise RecipeMismatch(f"{self.path} holds rows with {what}; give another folder")

    def settle(self, key: str, value: Any) -> Any:
        """The recipe's value of ``key``; ``value`` is stored first if there is none."""
        with self.lock("recipe", wait=True):
            recipe = json.loads(self.recipe.read_text(encoding="utf-8"))
            kept = recipe.setdefault(key, value)
            write_json(self.recipe, recipe)
        return kept

    @property
    def finished(self) -> bool:
        return self.summary.exists()

    def num_shards(self) -> int | None:
        """Number of shards in the plan, None while it is not written."""
        stamp = self.plan / "plan.json"
        return json.loads(stamp.read_text())["shards"] if stamp.exists() else None

    def num_units(self) -> int:
        """Units (clips, or rows of an earlier stage) of the whole plan."""
        return json.loads((self.plan / "plan.json").read_text())["units"]

    def units_by_shard(self) -> list[int]:
        """Units of every shard: all are of one size, except the last."""
        last = (self.num_shards() or 0) - 1
        size = sum(1 for _ in read_lines(self.plan_file(0)))
        return [size] * last + [self.num_units() - last * size]

    def plan_file(self, number: int) -> Path:
        return self.plan / f"{number:05d}.jsonl"

    def shard_file(self, number: int) -> Path:
        return self.shards / f"{number:05d}.jsonl"

    def unfinished(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        return [n for n in range(self.num_shards() or 0) if not self.shard_file(n).exists()]

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Yields whether this process has the lock ``name``. The system releases it when the process dies."""
        with open(self.path / f".{name}.lock", "ab") as file:
            yield try_lock(file, wait=wait)


def write_plan(
    folder: RecipeFolder, units: Iterable[Mapping[str, Any]], *, shard_size: int, progress: bool = True
) -> int:
    """Divide ``units`` into shards of ``shard_size`` unless the folder has a plan; returns the number of shards.

    One process writes, others wait for it. A plan that a kill left half-written is written again. A complete plan is
    never changed, so rows do not move between shards when the corpus grows later. No units are a `ValueError`.
    """
    with folder.lock("plan", wait=True):
        shards = folder.num_shards()
        if shards is not None:
            return shards
        shutil.rmtree(folder.plan, ignore_errors=True)
        folder.plan.mkdir(parents=True)
        shards, count, units = 0, 0, iter(units)
        with Progress("reading the corpus", unit="clips", shown=progress, leave=False) as bar:
            while part := list(islice(units, shard_size)):
                write_lines(folder.plan_file(shards), map(dump_line, part))
                shards, count = shards + 1, count + len(part)
                bar.update(len(part))
        if not count:
            raise ValueError("the corpus holds no clips of the wanted splits; nothing to do")
        write_json(folder.plan / "plan.json", {"shards": shards, "units": count})
        return shards


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` as a whole."""
    write_lines(path, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replace ``path`` as a whole by ``lines``: a kill or a full disk leaves the old file, or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        try_lock(file, wait=True)  # marks the file as being written, see remove_leftovers
        try:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write_lines` whose process was killed; a running process holds a lock on its file."""
    for part in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", part.name):
            with suppress(FileNotFoundError), part.open("rb") as file:  # its process may just have renamed it
                if time.time() - os.fstat(file.fileno()).st_mtime > 60 and try_lock(file):
                    part.unlink()


def dump_line(value: Any) -> bytes:
    """One JSON line. Half a surrogate pair, which UTF-8 cannot encode, becomes a question mark."""
    try:
        return orjson.dumps(value, default=list, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json_line(value)


def read_lines(path: Path) -> Iterator[Any]:
    """The objects of a whole JSONL file."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        # A new recipe lacks values that `remember` adds; an old one lacks keys that a later version added.
        for key in {*old, *new} if where else {*old} & {*new}:
            name = f"{where}.{key}" if where else key
            yield from _differences(old.get(key), new.get(key), name)
    elif old != new:
        yield f"{where} (there: {_short(old)}, now: {_short(new)})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
