"""No true value reaches the text that the audio model reads, except among offered options."""

import numpy as np
import pytest
import soundfile

from nemo_desta.demo.corpus import generate
from nemo_desta.demo.prompts import make_prompt
from nemo_desta.demo.score import Scores
from nemo_desta.demo.world import TASKS, gold


class Recorder:
    """Stands where the model stands and keeps what it is asked."""

    audio_locator_tag = "<|AUDIO|>"

    def __init__(self):
        self.chats = []

    def chat(self, chats, **_):
        self.chats += chats
        return ["The speaker is male."] * len(chats)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    made = []
    for row, _ in generate(3, 60):
        soundfile.write(folder / f"{row['id']}.wav", np.zeros(1600, np.float32), 16_000)
        made.append({**row, "audio": f"{row['id']}.wav"})
    return folder, made


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.values])
def test_no_true_value_is_in_the_question(rows, task):
    folder, rows = rows
    model, scores = Recorder(), Scores()
    known = [row for row in rows if gold(row, task) is not None]
    if not known:
        assert task in ("emotion", "intensity", "style")  # the generated corpus has no actors
        return
    scores.score(model, known, task, folder, progress=False)
    assert len(model.chats) == len(known)
    truth = {str(folder / row["audio"]): gold(row, task) for row in known}
    for (message,) in model.chats:
        assert message["content"].startswith("<|AUDIO|>\n")
        (clip,) = message["audios"]
        assert not isinstance(clip, dict)  # no transcript travels with the clip
        words = message["content"].lower().replace("?", " ").split()
        assert truth[str(clip)].lower() not in words


def test_an_unparsed_answer_counts_as_wrong(rows):
    folder, rows = rows
    scores = Scores()
    scores.score(Recorder(), rows, "digit", folder, progress=False)
    (result,) = scores.results
    assert result.accuracy.value == 0.0 and result.accuracy.unparsed == result.accuracy.total > 0


def test_the_first_wording_of_a_task_offers_nothing():
    for name, task in TASKS.items():
        text = make_prompt(name).text.lower()
        offered = [value for value in task.values or () if f" {value.lower()} " in f" {text.rstrip('?.')} "]
        assert not offered or name == "domain", (name, offered)
