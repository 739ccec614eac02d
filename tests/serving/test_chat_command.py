"""examples/desta_chat.py: its config, its command line, and the real program in a real terminal."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_desta.answering.audio_embeddings import encode_clips
from nemo_desta.answering.clips import load_clip
from nemo_desta.cli.literals import quote_literals
from nemo_desta.config import FeatureCacheConfig, parse
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import FrozenEncoder
from nemo_desta.serving.chat_command import ChatConfig, run_chat
from tests.serving.serving_tools import noise

ROOT = Path(__file__).resolve().parents[2]
GREEDY = ["sampling.max_new_tokens=8", "sampling.temperature=0"]


def composed(*words):
    with initialize_config_dir(str(ROOT / "conf" / "use"), version_base=None):
        return compose("chat", overrides=quote_literals(words))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "x.wav"
    soundfile.write(path, noise(0.5), 16_000)
    return path


def test_the_config_holds_what_is_read_and_nothing_else():
    plain = OmegaConf.to_container(composed("model=m"), resolve=True)
    assert parse(ChatConfig, plain, where="chat") == ChatConfig(model="m")
    assert plain.keys() == ChatConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "text",
    [
        "Who is speaking?",
        "What's that: a dog, a cat (or {both})?",
        'She said "no".',
        "yes,no",
        "a=b [1]",
        "null hypothesis",
        "12",
        "ends with a backslash \\",
        "both ' and \\' and \\",
        "Ünïcödé 你好",
    ],
)
def test_a_prompt_arrives_as_it_was_typed(text):
    assert composed("model=m", f"prompt={text}").prompt == text


def test_audio_may_be_one_path_or_a_list():
    assert composed("model=m", "audio=a (1), b's.wav").audio == "a (1), b's.wav"
    assert list(composed("model=m", "audio=[a.wav,b.wav]").audio) == ["a.wav", "b.wav"]
    assert composed("model=m", "input=rows-{00..12}.jsonl").input == "rows-{00..12}.jsonl"
    assert composed("model=m", "audio=null", "prompt='quoted'").prompt == "quoted"


def test_one_answer_is_all_that_is_printed(model, clip, capsys):
    run_chat(composed("model=m", f"audio={clip}", "prompt=What is this?", *GREEDY), load=lambda config: model)
    message = {"role": "user", "content": "<|AUDIO|>\nWhat is this?", "audios": [clip]}
    printed = capsys.readouterr()
    assert printed.out == model.chat([message], max_new_tokens=8, temperature=0.0) + "\n"
    assert "0.5 s" in printed.err


def test_a_file_of_rows_is_answered_from_its_own_folder(model, clip, tmp_path):
    rows = clip.with_name("rows.jsonl")
    rows.write_text(json.dumps({"id": "a", "audio": "x.wav", "prompt": "What?"}) + "\n")
    words = ["model=m", f"input={rows}", f"output={tmp_path}/out/a.jsonl", *GREEDY]
    summary = run_chat(composed(*words), load=lambda config: model)
    assert summary.ok and summary.answered == 1 and (tmp_path / "out" / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=m", "prompt=x", "web=true"], "prompt and web: give only one"),
        (["model=m", "input=rows.jsonl"], "input .* and output .* go together"),
        (["model=m", "batch.engine=vlm"], "unknown batch.engine 'vlm'. Did you mean 'vllm'"),
        (["model=m", "+batch.vllm.max_model_len=9"], "batch.vllm is for batch.engine=vllm"),
        (["model=m", "audio=[a,b]", "text=hello", "prompt=x"], "1 texts for 2 audios"),
        (["model=m", "audio=a.wav", "web=true"], "audio goes with a prompt"),
        ([], "chat.model' must be given"),
    ],
)
def test_settings_that_contradict_are_refused_before_anything_is_loaded(words, message):
    with pytest.raises(ConfigError, match=message):
        run_chat(composed(*words), load=lambda config: pytest.fail("loaded"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """The model on disk, its answers without an end."""
    with torch.no_grad():
        for token in model.prompts.end_ids():
            model.llm.get_output_embeddings().weight[token] = 0.0
    model.llm.save_pretrained(model.config.llm.path)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def test_a_feature_cache_serves_later_chats_with_the_same_vectors(folder, clip, tmp_path, monkeypatch):
    def vectors(**more):
        model = ChatConfig(model=str(folder), **more).load()
        return encode_clips(model, [load_clip(clip, model.sampling_rate)])[0]

    plain, cached = vectors(), {"feature_cache": FeatureCacheConfig(folder=str(tmp_path))}
    assert torch.equal(vectors(**cached), plain)
    monkeypatch.setattr(FrozenEncoder, "forward", None)
    assert torch.equal(vectors(**cached), plain)
    with pytest.raises(ConfigError, match="feature_cache.precompute is for training"):
        vectors(feature_cache=FeatureCacheConfig(precompute=True))


class Screen:
    """The program in a terminal of its own."""

    def __init__(self, *words):
        self.text = ""
        self.fd, child = pty.openpty()
        command = [sys.executable, str(ROOT / "examples" / "desta_chat.py"), *words]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
        )
        os.close(child)

    def wait_for(self, text, secs=120):
        """What came up to ``text``; it is then read."""
        end = time.monotonic() + secs
        while text not in self.text:
            assert time.monotonic() < end, f"no {text!r} in {self.text!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode("utf-8", "replace")
                except OSError:
                    pytest.fail(f"the program ended: {self.text!r}")
        before, _, self.text = self.text.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())


@pytest.mark.slow
def test_control_c_in_a_terminal_stops_the_answer_and_not_the_program(folder, clip):
    screen = Screen(f"model={folder}", "sampling.max_new_tokens=1900", "sampling.temperature=0", "device=cpu")
    try:
        before = screen.wait_for("/help)")
        assert "Warning" not in before and "Loading" not in before
        screen.wait_for("> ")
        screen.type(f"/audio {clip}\n")
        screen.wait_for("0.5 s)")
        screen.wait_for("> ")
        screen.type("What is this?\n")
        screen.wait_for("this?\r\n")
        time.sleep(0.5)
        screen.type("\x03")
        screen.wait_for("(stopped)", secs=20)
        screen.wait_for("> ")
        screen.type("/quit\n")
        assert screen.process.wait(timeout=30) == 0
    finally:
        screen.process.kill()


@pytest.mark.slow
def test_a_killed_file_of_rows_goes_on_with_the_same_command(folder, clip, tmp_path):
    rows, output = clip.with_name("many.jsonl"), tmp_path / "a.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": f"r{i}", "audio": "x.wav", "prompt": f"Number {i}?"}) + "\n" for i in range(60))
    )
    command = [sys.executable, str(ROOT / "examples" / "desta_chat.py"), f"model={folder}", "device=cpu"]
    command += [f"input={rows}", f"output={output}", "sampling.max_new_tokens=60", "batch.max_batch_size=2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    end = time.monotonic() + 120
    while not output.exists() or output.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = output.read_bytes()
    assert 5 <= kept.count(b"\n") < 60
    with output.open("ab") as file:
        file.write(b'{"id": "r59", "ans')  # a kill in the middle of a line

    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "answers: 60 in" in done.stdout and "half-written line" in done.stderr
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert {json.loads(line)["id"] for line in output.read_text().splitlines()} == {f"r{i}" for i in range(60)}


@pytest.mark.slow
def test_a_wrong_folder_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "desta_chat.py"), f"model={tmp_path}", "prompt=Hello"]
    result = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True, capture_output=True)
    assert result.returncode == 1 and result.stdout == ""
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in result.stderr
