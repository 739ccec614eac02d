"""The page: one file, safe with any text, with clips to play; and what is said where a clip cannot be played."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_desta.config import parse
from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.recipes.check_rows import CheckConfig
from nemo_desta.recipes.report import compute_stats, write_report
from nemo_desta.recipes.report.command import ReportConfig, run_report
from nemo_desta.recipes.report.samples import Reservoir, load_sound
from tests.recipes.report.conftest import make_row

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp;"


class Page(HTMLParser):
    """Counts tags, keeps the addresses that they name, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.addresses: list[str] = []
        self.events: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_needs_nothing_from_elsewhere_and_plays_its_rows(folder: Path) -> None:
    path = write_report(folder, folder / "out", audio_root=folder, num_samples=7, progress=False)
    page = read(path)
    assert page.tags["audio"] == 7
    assert all(a.startswith(("data:audio/", "#")) for a in page.addresses)
    assert "http:" not in path.read_text() and "https:" not in path.read_text()
    data = next(a for a in page.addresses if a.startswith("data:"))
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    assert (len(samples), rate) == (12_000, 8000)
    assert json.loads((folder / "out/report.json").read_text()) == compute_stats(folder)


def test_text_from_rows_stays_text(folder: Path, write_rows: Callable[..., Path]) -> None:
    row = make_row(0, response=EVIL, prompt=EVIL, dataset=EVIL, llm=EVIL, stage=EVIL, prompt_kind=EVIL, id=EVIL)
    row["seed_description"] = f"[00:00-00:02] x (Gender: {EVIL}, {EVIL}: y, Duration: 2s)"
    row["messages"][0]["audios"][0]["audio"] = EVIL
    thinking = make_row(1, response=f"{EVIL}</think>{EVIL}", first_response=EVIL)
    rows = write_rows("evil.jsonl", [row, thinking, {"id": EVIL}])
    rejected = write_rows("dropped.jsonl", [{"id": EVIL, "reason": EVIL, "detail": EVIL, "row": row}])
    path = write_report(
        rows, folder / "out", audio_root=folder, rejected=rejected, summary={"llm": EVIL}, title=EVIL, progress=False
    )
    page = read(path)
    assert page.tags["script"] == 1  # our own
    assert "img" not in page.tags and page.events == []


def test_a_report_without_anything_to_show_is_still_a_page(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    assert read(write_report(tmp_path / "rows.jsonl", tmp_path / "out", progress=False)).tags["h2"] > 5


def test_perplexities_stand_side_by_side(folder: Path) -> None:
    def scored(value: float) -> dict:
        one = {"rows": 3, "tokens": 30, "nll": 0.5, "perplexity": value, "median_row_nll": 0.5}
        one["median_row_perplexity"] = value
        return {"total": one, "by_corpus": {"a": one, "b": one}, "by_stage": {}, "by_llm": {}, "skipped": {"tags": 2}}

    result = {"llm": "tiny", "own": scored(1.25), "others": {"people": scored(8.5)}}
    text = write_report(folder, folder / "out", perplexity=result, progress=False).read_text()
    assert re.search(r"<th>b</th><td class=\"n\">1\.250</td><td class=\"n\">8\.500</td>", text)
    assert "people: tags (2)" in text


@pytest.mark.parametrize(
    ("name", "problem"),
    [("../../etc/passwd", "outside"), ("audio/none.wav", "no file"), ("notes.wav", "cannot be read")]
    + [("empty.wav", "no samples"), ("headerless.raw", "cannot be read")],
)
def test_a_clip_that_cannot_be_played_says_why(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    sound = load_sound({"audio": name}, AudioRoots({"default": tmp_path}))
    assert sound.uri is None and problem in sound.problem
    assert load_sound({"audio": name}, None).problem == "no audio root was given"


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"), [(8000, 1, "FLOAT"), (44_100, 2, "PCM_24"), (96_000, 1, "PCM_16")]
)
def test_a_long_clip_of_any_kind_is_cut_and_said_to_be(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    tone = np.sin(np.arange(20 * rate) * 2 * np.pi * 440 / rate)
    soundfile.write(tmp_path / "x.wav", np.repeat(tone[:, None], channels, 1) / 2, rate, subtype=subtype)
    sound = load_sound({"audio": "x.wav"}, AudioRoots({"default": tmp_path}))
    assert sound.note == "first 15 s of 20.0 s"
    samples, played_rate = soundfile.read(io.BytesIO(base64.b64decode(sound.uri.partition(",")[2])))
    assert len(samples) / played_rate == pytest.approx(15, abs=0.2)
    peak = np.argmax(np.abs(np.fft.rfft(samples))) * played_rate / len(samples)
    assert peak == pytest.approx(440, abs=2)


def test_a_reservoir_draws_evenly_and_by_its_seed() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        drawn = Reservoir(5, seed)
        for i in range(20):
            drawn.add(i)
        assert drawn.items == sorted(drawn.items) and len(set(drawn.items)) == 5
        counts[drawn.items] += 1
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, standard deviation 19
    again = Reservoir(5, 1999)
    for i in range(20):
        again.add(i)
    assert again.items == drawn.items


def test_the_command_measures_perplexity_and_writes_beside_the_rows(folder: Path, llm_folder: Path) -> None:
    result = run_report(
        {"rows": str(folder), "llm": str(llm_folder), "max_rows": 4, "num_samples": 2, "progress": False}
    )
    assert result.path == folder / "report.html"
    assert result.perplexity.own.total.rows == 4
    assert "target perplexity under tiny-qwen3" in str(result)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("report", ["others={another LLM: a.jsonl}", "prices={prompt: 0.05,new: 1}", "audio_root={toy: /a}"]),
        ("report", ["rows=[a,b]", "chat_template_kwargs={enable_thinking: false}", "audio_root=/a"]),
        ("check", ["audio_roots={toy: /a}", "chat_template_kwargs={enable_thinking: false}"]),
    ],
)
def test_the_shipped_configs_take_their_settings(name: str, given: list[str]) -> None:
    folder = Path(__file__).parents[3] / "conf/recipes"
    with initialize_config_dir(str(folder), version_base=None):
        plain = OmegaConf.to_container(compose(name, overrides=["rows=x", *given]), resolve=True)
    assert plain.pop("recipe") == name
    config = {"report": ReportConfig, "check": CheckConfig}[name]
    parsed = parse(config, plain)
    assert set(plain) == {field.name for field in fields(config)}
    defaults = {key: getattr(parsed, key) for key in plain if not any(key in one for one in ["rows", *given])}
    assert defaults == {key: getattr(config(), key) for key in defaults}
