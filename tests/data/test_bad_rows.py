import json
import logging
from pathlib import Path

import pytest

from nemo_desta.data.bad_rows import BadRowLog, TooManyBadRows


def bad(number: int, reason: str = "corrupt") -> dict:
    return {"id": f"r{number}", "dataset": "d", "where": f"f:{number}", "reason": reason, "detail": "broken"}


def test_each_bad_row_is_named_once_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = BadRowLog(tmp_path / "sub" / "bad.jsonl")
    with caplog.at_level(logging.WARNING):
        log.update(100, [bad(1), bad(2, "tags")])
        log.update(100, [bad(1)])  # the next epoch meets it again
    assert caplog.text.count("bad row 'r1' (f:1), corrupt: broken") == 1
    assert log.reasons == {"corrupt": 1, "tags": 1}
    assert (log.num_rows, log.num_bad) == (203, 3)
    assert [json.loads(line)["id"] for line in (tmp_path / "sub" / "bad.jsonl").read_text().splitlines()] == [
        "r1",
        "r2",
    ]
    assert "1 corrupt, 1 tags" in log.summary()


def test_a_resumed_run_names_nothing_twice_and_counts_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    first = BadRowLog(path)
    first.update(10, [bad(1)])
    saved = first.state_dict()
    first.update(10, [bad(2)])  # after the checkpoint; then the run is killed while it writes
    path.write_text(path.read_text() + '{"id": "r3", "wh')
    second = BadRowLog(path)
    second.load_state_dict(saved)
    second.update(10, [bad(2)])
    second.update(10, [bad(3)])
    assert (second.num_rows, second.num_bad) == (33, 3)
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines() if line.endswith("}")]
    assert ids == ["r1", "r2", "r3"]
    assert second.reasons == {"corrupt": 3}


def test_too_many_bad_rows_stop_the_run_with_reasons(tmp_path: Path) -> None:
    log = BadRowLog(tmp_path / "bad.jsonl", max_share=0.1, min_bad_rows=3)
    log.update(0, [bad(1), bad(2)])  # all bad, but too few to judge
    log.update(26, [])
    with pytest.raises(
        TooManyBadRows, match=r"4 of 30 rows could not be used \(13\.3%; the limit is 10\.0%.*3 corrupt"
    ):
        log.update(0, [bad(3), bad(4, "tags")])


def test_a_share_below_the_limit_goes_on() -> None:
    log = BadRowLog(max_share=0.1, min_bad_rows=3)
    for number in range(50):
        log.update(19, [bad(number)])
    assert log.num_bad == 50
