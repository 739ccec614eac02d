"""The benchmark of scoring runs, and scores what it says it scores."""

from benchmarks.scoring import BENCHMARKS, main


def test_every_answer_is_scored_in_strict_mode():
    report = main(["--answers", "200", "--long", "0.5"])
    assert [report[f"{name}_strict_counted"] for name in BENCHMARKS] == [200] * len(BENCHMARKS)
    assert 0 < report["mmsu_official_counted"] < 200  # the official rule reads letters only
