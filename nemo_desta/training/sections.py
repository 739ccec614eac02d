"""The names at the top of a training config."""

SECTIONS = (
    "model",
    "trainer",
    "data",
    "exp_manager",
    "strategy",
    "callbacks",
    "seed",
    "check",
    "check_rate",
    "count",
    "name",
    "resume",
)
#: Top-level values that only other settings read, by ``${}``.
VALUES = ("work_dir", "data_root", "rows_root", "generated", "corpora")
