"""Every key of two configs is given wrong kinds of values, misspelt and dropped: no check may end in a traceback."""

import copy
import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_desta.training.fit import fit
from nemo_desta.user_errors import one_line

#: In place of any value. No large numbers: a projector of that size would be built.
VALUES = ("soon", "", -1, 0, 1.5, True, None, [], ["x"], [3], {}, {"x": 1})
#: Mutants of the fast test, drawn from both configs.
FEW = 40


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key and every entry of a list."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutants(base: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    for path in places(base):
        if path[0] in ("check", "strategy"):  # the trainer has its own copy of the strategy
            continue
        for value in VALUES:
            yield "value", path, value
        yield "drop", path, None
        if isinstance(path[-1], str):
            yield "misspell", path, path[-1][:-1] + path[-1][-1] * 2


def mutated(base: dict[str, Any], how: str, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(base)
    holder = config
    for key in path[:-1]:
        holder = holder[key]
    if how == "value":
        holder[path[-1]] = value
    else:
        old = holder.pop(path[-1])
        if how == "misspell":
            holder[value] = old
    return config


def tracebacks(base: dict[str, Any], some: list[tuple[str, tuple[Any, ...], Any]]) -> list[str]:
    """The mutants that end in something else than a report or one line."""
    bad = []
    for how, path, value in some:
        try:
            fit(OmegaConf.create(mutated(base, how, path, value)))
        except Exception as error:
            line = one_line(error)
            if line is None or "\n" in line or not line.strip():
                bad.append(f"{how} {'.'.join(map(str, path))} {value!r}: {type(error).__name__}: {error}")
    return bad


@pytest.fixture(scope="module")
def bases(workplace):
    """Both configs, over tiny parts and rows on disk; the demo's has a validation set."""
    rows, valid = workplace.folder / "rows", workplace.folder / "valid"
    item = {"type": "desta", "rows": str(valid / "rows.jsonl"), "weight": 1.0, "audio_roots": {"default": str(valid)}}
    found = {}
    for name in ("desta25", "demo"):
        config = workplace.config("mutants", config=name)
        settings = OmegaConf.to_container(config, resolve=True)
        settings["data"]["validation_ds"]["datasets"] = {"tiny": {"input_cfg": [item]}} if name == "demo" else {}
        settings["model"]["llm"]["lora"] = {"r": 4, "target_modules": ["q_proj"]} if name == "demo" else None
        found[name] = {**settings, "check": True}
    assert rows.is_dir()
    return found


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_a_sample_of_mutated_configs_ends_in_no_traceback(bases):
    pairs = [(name, mutant) for name, base in bases.items() for mutant in mutants(base)]
    drawn = random.Random(0).sample(pairs, FEW)
    for name, base in bases.items():
        assert tracebacks(base, [mutant for of, mutant in drawn if of == name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["desta25", "demo"])
def test_no_mutated_config_ends_in_a_traceback(bases, name, capsys):
    tried = list(mutants(bases[name]))
    bad = tracebacks(bases[name], tried)
    with capsys.disabled():
        print(f"\n{name}: {len(tried)} mutated configs, {len(bad)} tracebacks")
    assert bad == []
