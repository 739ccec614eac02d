"""The table of `benchmarks.fusion`, and one run of it: two steps on clips of noise."""

import json

import numpy as np
import pytest
import soundfile

from benchmarks import fusion

ATTRIBUTES = {
    "fsdd": {"digit": "7", "gender": "male"},
    "esc10": {"sound_class": "rain"},
    "ravdess": {"gender": "female", "emotion": "happy"},
}


def record(labels, projector, seed, *accuracies, vectors=6.5):
    tasks = fusion.TASKS
    return {
        "encoders": labels,
        "projector": projector,
        "seed": seed,
        "trainable": 936_916,
        "accuracy": dict(zip(tasks, accuracies, strict=True)),
        "constant": dict(zip(tasks, (0.1, 0.1, 0.5, 0.1), strict=True)),
        "vectors_per_second": vectors,
    }


def test_the_table_has_means_over_seeds_and_over_tasks_and_marks_stand_ins():
    records = [
        record(["whisper"], "window", 0, 0.2, 0.4, 0.6, 0.8),
        record(["whisper", "random"], "Q-Former", 0, 1.0, 1.0, 1.0, 1.0, vectors=2.125),
        record(["whisper"], "window", 1, 0.4, 0.4, 0.8, 1.0),
    ]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in fusion.table(records, {"random"}).splitlines()
    ]
    assert lines[2][:5] == ["whisper", "window", "0.94 M", "6.5", "2"]
    assert lines[2][5:7] == ["0.30 (0.20-0.40)", "0.40 (0.40-0.40)"]
    assert lines[2][-1] == "0.57 (0.50-0.65)"  # the range is of the seeds' means
    assert lines[3][:4] == ["whisper + random*", "Q-Former", "0.94 M", "2.1"]
    assert lines[4][0] == "best constant answer" and lines[4][-1] == "0.20"


@pytest.mark.parametrize(
    ("labels", "sets"), [("a", ["a"]), ("ab", ["a", "b", "ab"]), ("abc", ["a", "b", "c", "ab", "ac", "bc", "abc"])]
)
def test_every_set_once_and_the_other_projectors_on_the_first_encoder_and_on_all(labels, sets):
    found = [("".join(some), projector) for some, projector in fusion.variants(list(labels))]
    ends = list(dict.fromkeys(["a", labels]))
    assert found == [(one, name) for name in fusion.PROJECTORS for one in (sets if name == "window" else ends)]


@pytest.mark.slow
def test_two_steps_give_a_table_and_a_picture_and_are_not_repeated(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "manifests").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, attributes in ATTRIBUTES.items():
        rows = []
        for split in ("train", "test"):
            row = {"id": f"{name}-{split}", "audio": f"{name}-{split}.wav", "duration": 0.5, "split": split}
            row |= {"domain": "sound" if name == "esc10" else "speech", "attributes": attributes, "group": split}
            soundfile.write(data / row["audio"], rng.normal(0, 0.1, 8_000), 16_000)
            rows.append(row)
        (data / "manifests" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    variant = "whisper-beats-random_conv"
    command = ["--data-root", str(data), "--work-dir", str(tmp_path / "run"), "--seeds", "0", "--only", variant]
    fusion.main([*command, "--steps", "2"])
    written = json.loads((tmp_path / "run" / f"{variant}_0" / "result.json").read_text())
    assert written["encoders"] == ["whisper", "beats", "random"] and written["clips"] == dict.fromkeys(fusion.TASKS, 1)
    assert written["trainable"] > 1e6 and written["vectors_per_second"] == 26  # 13 for 25 frames of 20 ms
    assert "whisper* + beats* + random*" in (tmp_path / "run" / "results.md").read_text()
    assert (tmp_path / "run" / "fusion.png").stat().st_size > 5_000

    monkeypatch.setattr("benchmarks.target_source.train", None)  # a second training would call it
    fusion.main([*command, "--steps", "2"])
    with pytest.raises(SystemExit, match="other settings"):
        fusion.main([*command, "--steps", "3"])


def test_an_encoder_without_a_path_is_refused(capsys):
    with pytest.raises(SystemExit):
        fusion.main(["--data-root", "data", "--encoder", "whisper"])
    assert "found 'whisper', expected LABEL=PATH" in capsys.readouterr().err
