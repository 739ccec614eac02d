"""The types of metadata files that a card may name: ours, and those of installed packages.

A reader is a function of (path, `SourceConfig`), or a class of (`SourceConfig`, data root) with ``rows(relative
path)``. Both yield (where, row): the row's position for error messages, and its columns. Cards may come from others,
so a card never imports a dotted name.
"""

from nemo_desta.registry import Registry

_ROOM = "nemo_desta.recipes.corpora"

READERS = Registry(
    "reader",
    "nemo_desta.readers",
    {
        "csv": f"{_ROOM}.files:csv_rows",
        "tsv": f"{_ROOM}.files:csv_rows",
        "jsonl": f"{_ROOM}.readers:jsonl_rows",
        "json": f"{_ROOM}.readers:json_rows",
        "files": f"{_ROOM}.readers:file_rows",
        "lines": f"{_ROOM}.readers:line_rows",
        "textgrid": f"{_ROOM}.textgrid:textgrid_rows",
        "lhotse": f"{_ROOM}.readers:LhotseReader",
        "huggingface": f"{_ROOM}.huggingface_reader:HuggingFaceReader",
    },
    dotted=False,
)
