"""Opens sources of rows: JSONL files, shar folders, and mixes of them in NeMo's ``input_cfg`` grammar."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nemo_desta.config import check_keys, check_type, nearest
from nemo_desta.data.audio_io import AudioFile, AudioRoots
from nemo_desta.data.remote import is_url, shown
from nemo_desta.data.row_schema import TRAINING, RowRules
from nemo_desta.data.row_source import RowSource, WeightedSource
from nemo_desta.data.rows import JsonlIndex, Row, audio_entries
from nemo_desta.data.shar import SharSource
from nemo_desta.errors import ConfigError

#: Keys of one ``type: desta`` entry. ``rows``: JSONL file, pattern over shards, shar folder, or shar field -> shards,
#: also URLs (``manifest_filepath`` and ``shar_path`` are NeMo's names for it). ``audio_root``: name of the root of its
#: paths; ``audio_roots``: further roots. ``name``: dataset of rows that name none. ``datasets``: only rows of these
#: (JSONL files). ``strict_keys``: see `RowRules`.
SOURCE_KEYS = ("type", "rows", "manifest_filepath", "shar_path", "name", "datasets", "audio_root", "audio_roots")
SOURCE_KEYS += ("strict_keys", "weight")
GROUP_KEYS = ("type", "input_cfg", "weight")
ROW_KEYS = ("rows", "manifest_filepath", "shar_path")
KINDS = {
    "name": str | None,
    "datasets": list[str] | None,
    "audio_root": str | None,
    "audio_roots": dict[str, str] | None,
    "strict_keys": bool | None,
}


class JsonlSource:
    """Rows of JSONL files; audio paths are relative to the audio roots."""

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        audio_roots: Mapping[str, str | Path] | None = None,
        *,
        audio_root: str | None = None,
        name: str | None = None,
        datasets: Iterable[str] | None = None,
        rules: RowRules = TRAINING,
    ) -> None:
        self.index = JsonlIndex(paths, rules, datasets)
        self.rules = rules
        first = self.index.paths[0]
        self.name = name or Path(first.name.removesuffix(".gz").removesuffix(".zst")).stem
        self.roots = AudioRoots({"default": first.parent, **(audio_roots or {})})
        if audio_root is not None and audio_root not in self.roots.roots:
            raise ConfigError(
                f"audio_root '{audio_root}' of {first}: no such root.{nearest(audio_root, self.roots.roots)}"
            )
        self.audio_root = audio_root

    def __len__(self) -> int:
        return len(self.index)

    def row(self, i: int) -> Row:
        return self.index.row(i)

    def where(self, i: int) -> str:
        return self.index.where(i)

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        dataset = row.get("dataset")
        return [
            self.roots.resolve(entry["audio"], root=self.audio_root, dataset=dataset) for entry in audio_entries(row)
        ]


def open_source(
    item: Mapping[str, Any],
    audio_roots: Mapping[str, str | Path] | None = None,
    *,
    audio_role: str | None = None,
) -> RowSource:
    """The source of one ``type: desta`` entry: JSONL files, or a lhotse shar folder written by `write_shar`. URLs are
    allowed, and a shar by URL is given by its shards, as in lhotse: ``{cuts: ..., recording: ...}``.

    ``audio_role``: one more allowed role (`PromptConfig`).

    Raises:
        ConfigError: no rows given, or none of ``datasets``. FileNotFoundError: nothing there.
    """
    rows = item.get("rows") or item.get("manifest_filepath") or item.get("shar_path")
    if not rows or "???" in str(rows):
        raise ConfigError("a 'type: desta' entry needs 'rows': a JSONL file, a pattern over shards, or a shar folder")
    strict_keys = item.get("strict_keys")
    if not isinstance(strict_keys, bool | None):
        raise ConfigError(f"strict_keys must be true, false or null, found {strict_keys!r}")
    rules, datasets = RowRules(strict_keys, audio_role), item.get("datasets")
    if datasets is not None and (isinstance(rows, Mapping) or Path(str(rows)).is_dir()):
        raise ConfigError(f"datasets: {list(datasets)} chooses rows of JSONL files, and {shown(str(rows))} is a shar")
    if isinstance(rows, Mapping):
        return SharSource(rows, name=item.get("name"), rules=rules)
    if is_url(rows) and not PurePosixPath(shown(rows)).name.endswith((".jsonl", ".json", ".gz", ".zst")):
        raise ConfigError(
            f"{shown(rows)}: a folder behind a URL cannot be listed. Give the files of rows, or the shards of a shar: "
            "rows: {cuts: <url>/cuts.{000000..000127}.jsonl.gz, recording: <url>/recording.{000000..000127}.tar}"
        )
    if isinstance(rows, (str, Path)) and Path(rows).is_dir():
        return SharSource(rows, name=item.get("name"), rules=rules)
    roots = {**(audio_roots or {}), **(item.get("audio_roots") or {})}
    named = {"audio_root": item.get("audio_root"), "name": item.get("name"), "datasets": datasets}
    return JsonlSource(rows, roots, **named, rules=rules)


def open_input_cfg(
    input_cfg: list[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | str | None,
    audio_roots: Mapping[str, str | Path] | None = None,
    *,
    audio_role: str | None = None,
) -> list[WeightedSource]:
    """All sources of NeMo's ``input_cfg`` grammar, with their shares.

    In a list either every entry has a weight or none. A group's share is divided among its entries by their weights,
    or without weights by their number of rows. Without any weight every row occurs once per epoch. ``audio_role``: see
    `open_source`.

    Raises:
        ConfigError: unknown type or key, or a weight on some entries only.
    """
    open_one = partial(open_source, audio_roots=audio_roots, audio_role=audio_role)
    tree = _open_list(read_input_cfg(input_cfg), "input_cfg", open_one)
    weighted = _has_weights(tree)
    return [WeightedSource(source, share if weighted else None) for source, share in _flatten(tree, 1.0)]


def read_input_cfg(input_cfg: Any, where: str = "input_cfg") -> list[dict[str, Any]]:
    """The checked entries of an ``input_cfg``: a list, a mapping (name -> entry), or a YAML file with one of these;
    empty for None. The key ``each`` of a mapping holds what its entries have in common, in which ``<name>`` stands for
    their names; ``~data.train_ds.input_cfg.<name>`` leaves one out.

    Raises:
        ConfigError: another kind of value, an unknown type or key, or a weight on some entries only.
        FileNotFoundError: no such file.
    """
    if isinstance(input_cfg, str):
        if not Path(input_cfg).is_file():
            raise FileNotFoundError(f"'{where}': no file '{input_cfg}', which would be a YAML list of sources")
        from omegaconf import OmegaConf  # late: models open without it

        where, input_cfg = input_cfg, OmegaConf.to_container(OmegaConf.load(input_cfg), resolve=True)
    check_type(input_cfg, list[dict] | dict[str, dict] | None, f"'{where}'")
    if isinstance(input_cfg, Mapping):
        items, shared = [], input_cfg.get("each") or {}
        for name, item in input_cfg.items():
            if name != "each":
                is_group = item.get("type") == "group"
                items.append(dict(item) if is_group else {"name": name, **_filled(shared, name), **item})
                _check_item(items[-1], f"{where}.{name}")
    else:
        items = list(input_cfg or ())
        for number, item in enumerate(items):
            _check_item(item, f"{where}.{number}")
    given = [item.get("weight") is not None for item in items]
    if any(given) and not all(given):
        raise ConfigError(f"'{where}': {sum(given)} of {len(given)} entries have a weight; give it to all or to none")
    return items


def _filled(value: Any, name: str) -> Any:
    """``value`` with ``name`` for ``<name>`` in all its texts."""
    if isinstance(value, Mapping):
        return {key: _filled(one, name) for key, one in value.items()}
    return value.replace("<name>", name) if isinstance(value, str) else value


def _check_item(item: Mapping[str, Any], where: str) -> None:
    kind, weight = item.get("type", "desta"), item.get("weight")
    if kind not in ("desta", "group"):
        known = nearest(str(kind), ["desta", "group"])
        raise ConfigError(f"{where}: type '{kind}' does not hold DeSTA rows.{known}")
    check_keys(item, GROUP_KEYS if kind == "group" else SOURCE_KEYS, where)
    check_type(weight, float | None, f"'{where}.weight'")
    if weight is not None and not weight > 0:
        raise ConfigError(f"{where}.weight must be above 0, found {weight!r}; leave the entry out instead")
    if kind == "group":
        read_input_cfg(item.get("input_cfg"), f"{where}.input_cfg")
        return
    for key, hint in {**dict.fromkeys(ROW_KEYS, str | list[str] | dict[str, str | list[str]] | None), **KINDS}.items():
        check_type(item.get(key), hint, f"'{where}.{key}'")


class _Node(NamedTuple):
    weight: float | None
    content: Any  # a RowSource, or a list of nodes


def _open_list(
    items: list[Mapping[str, Any]], where: str, open_one: Callable[[Mapping[str, Any]], RowSource]
) -> list[_Node]:
    if not items:
        raise ConfigError(f"'{where}' is empty: give at least one {{type: desta, rows: <JSONL file>}}")
    nodes = []
    for number, item in enumerate(items):
        if item.get("type", "desta") == "group":
            there = f"{where}.{number}.input_cfg"
            content: Any = _open_list(read_input_cfg(item.get("input_cfg"), there), there, open_one)
        else:
            content = open_one(item)
        nodes.append(_Node(item.get("weight"), content))
    return nodes


def _has_weights(nodes: list[_Node]) -> bool:
    return any(n.weight is not None or isinstance(n.content, list) and _has_weights(n.content) for n in nodes)


def _num_rows(node: _Node) -> int:
    return sum(map(_num_rows, node.content)) if isinstance(node.content, list) else len(node.content)


def _flatten(nodes: list[_Node], share: float) -> list[tuple[RowSource, float]]:
    weights = [node.weight if node.weight is not None else _num_rows(node) for node in nodes]
    total = sum(weights) or 1
    flat = []
    for node, weight in zip(nodes, weights, strict=True):
        part = share * weight / total
        flat += _flatten(node.content, part) if isinstance(node.content, list) else [(node.content, part)]
    return flat
