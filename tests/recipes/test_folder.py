"""A recipe's folder after a kill or a full disk: our own temporary files are no content, and go."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from nemo_desta.recipes.pipeline.folder import RecipeFolder, RecipeMismatch, write_lines


def old(path: Path) -> Path:
    path.write_bytes(b'{"half')
    os.utime(path, (1, 1))
    return path


def test_a_recipe_killed_while_it_wrote_recipe_json_begins_with_the_same_command(tmp_path: Path) -> None:
    old(tmp_path / ".recipe.json.24179")
    (tmp_path / ".recipe.json.24180").write_bytes(b"")  # just made: perhaps of a living process
    (tmp_path / ".recipe.lock").touch()
    RecipeFolder(tmp_path).claim({"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".recipe.json.24180", ".recipe.lock", "recipe.json"]
    RecipeFolder(tmp_path).claim({"seed": 1})


def test_temporary_files_of_killed_processes_go_everywhere_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path)
    folder.claim({"seed": 1})
    for place in (folder.plan, folder.rows):
        place.mkdir(parents=True)
    killed = [
        old(folder.shards / ".00000.jsonl.11"),
        old(folder.plan / ".plan.json.12"),
        old(folder.rows / ".a.jsonl.1"),
    ]
    living = old(folder.shards / ".00001.jsonl.13")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder.claim({"seed": 1})
    assert living.exists() and not any(path.exists() for path in killed)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def lines():
        yield b"one\n"
        raise OSError(errno.ENOSPC, "No space left on device")

    write_lines(tmp_path / "a.jsonl", [b"old\n"])
    with pytest.raises(OSError, match="No space"):
        write_lines(tmp_path / "a.jsonl", lines())
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_bytes() == b"old\n"


def test_a_folder_with_something_else_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").touch()
    with pytest.raises(RecipeMismatch, match="is not empty and holds no recipe.json"):
        RecipeFolder(tmp_path).claim({"seed": 1})
