"""The page in a real browser: the system's Chromium without a window, a microphone that plays a file."""

import shutil

import pytest
import soundfile
import torch

from nemo_desta.demo.speech import synth
from nemo_desta.models.desta import DestaModel
from nemo_desta.serving.web import launch, make_page
from nemo_desta.testing.models import tiny_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
]
GREEDY = {"temperature": 0.0, "max_new_tokens": 40}


def hearing_model(folder, llm):
    """One of the demo's LLMs, which writes plain English, with ears of random weights."""
    torch.manual_seed(0)
    return DestaModel({**tiny_config(folder), "llm": {"path": f"package:demo/assets/{llm}"}}).eval()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, text in {"one.wav": "one two three", "two.wav": "good morning", "spoken.wav": "a bird sings"}.items():
        soundfile.write(folder / name, synth(text), 16_000)
    (folder / "broken.wav").write_bytes(b"RIFF nonsense")
    return folder


@pytest.fixture(scope="module")
def browser(clips):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={clips / 'spoken.wav'}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, headless=True)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens pages; what they got from anywhere but this machine is an error."""
    pages, served, urls = [], [], []

    def open_page(model):
        page = make_page(model, sampling=GREEDY)
        served.append(page)
        tab = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        tab.set_default_timeout(30_000)
        tab.on("response", lambda response: urls.append(response.url))
        tab.goto(launch(page, port=0))
        tab.wait_for_selector("#ask")
        pages.append(tab)
        return tab

    yield open_page
    for tab in pages:
        tab.context.close()
    for page in served:
        page.close(verbose=False)
    assert urls and not [url for url in urls if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]


def upload(tab, *files):
    tab.set_input_files("#files input[type=file]", [str(file) for file in files])


def ask(tab, prompt, num_answers):
    """The text of the answer, once it is whole."""
    tab.fill("#prompt textarea", prompt)
    tab.click("#ask")
    tab.wait_for_function(
        "n => document.querySelectorAll('#chat .bot.message').length >= n", arg=num_answers, timeout=60_000
    )
    tab.wait_for_timeout(1500)
    return tab.locator("#chat .bot.message").last.inner_text().strip()


def test_upload_ask_and_ask_again(opened, clips, tmp_path_factory):
    model = hearing_model(tmp_path_factory.mktemp("model"), "llm")
    tab = opened(model)
    upload(tab, clips / "one.wav", clips / "two.wav")
    tab.wait_for_selector("#clips figure:nth-of-type(2) svg")
    assert "two.wav" in tab.inner_text("#clips")

    said = ask(tab, "Who is speaking?", 1)
    files = [clips / "one.wav", clips / "two.wav"]
    question = {"role": "user", "content": "<|AUDIO|>\n<|AUDIO|>\nWho is speaking?", "audios": files}
    assert said.startswith(model.chat([question], **GREEDY).strip())
    assert tab.locator("#clips figure").count() == 0  # they wait no more

    encoded, hits = model.audio_cache.num_encoded, model.audio_cache.num_hits
    assert ask(tab, "Is it loud?", 2)
    assert model.audio_cache.num_encoded == encoded and model.audio_cache.num_hits == hits + 2

    tab.click("#new")
    tab.wait_for_function("() => !document.querySelector('#chat .bot.message')")


def test_record_with_the_microphone(opened, tmp_path_factory):
    model = hearing_model(tmp_path_factory.mktemp("model"), "llm")
    tab = opened(model)
    tab.click("#microphone button:has-text('Record')")
    tab.wait_for_timeout(2000)
    tab.click("#microphone button:has-text('Stop')")
    tab.wait_for_selector("#clips figure svg")
    name, secs = tab.inner_text("#clips figcaption").replace("\n", " ").rsplit(" ", 2)[:2]
    assert name.strip() == "recording" and 1.0 < float(secs) < 6.0
    assert model.audio_cache.num_encoded == 0
    assert ask(tab, "What is said?", 1)
    assert model.audio_cache.num_encoded == 1


def test_a_broken_file_is_a_message_and_the_page_lives(opened, clips, tmp_path_factory):
    tab = opened(hearing_model(tmp_path_factory.mktemp("model"), "llm"))
    upload(tab, clips / "broken.wav")
    tab.wait_for_selector("#notice [role=alert]")
    assert "cannot read broken.wav" in tab.inner_text("#notice")
    upload(tab, clips / "one.wav")
    tab.wait_for_selector("#clips figure svg")
    assert not tab.is_visible("#notice [role=alert]")
    assert ask(tab, "What is this?", 1)


def test_thinking_is_folded_beside_the_answer(opened, clips, tmp_path_factory):
    model = hearing_model(tmp_path_factory.mktemp("model"), "llm_reasoning")
    tab = opened(model)
    upload(tab, clips / "one.wav")
    tab.wait_for_selector("#clips figure svg")
    shown = ask(tab, "Who is speaking?", 1)
    question = {"role": "user", "content": "<|AUDIO|>\nWho is speaking?", "audios": [clips / "one.wav"]}
    answer = model.chat([question], **GREEDY)
    assert answer.thinking and "Thinking" in tab.inner_text("#chat") and shown
    assert not tab.get_by_text(answer.thinking[:30]).last.is_visible()
    tab.get_by_text("Thinking", exact=True).click()
    tab.wait_for_timeout(500)
    assert tab.get_by_text(answer.thinking[:30]).last.is_visible()
