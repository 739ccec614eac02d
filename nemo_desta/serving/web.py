"""The web page: upload or record audio and ask about it. It is made with Gradio, without external resources or
telemetry.

The model answers one visitor at a time; other visitors are queued.
"""

import html
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_desta.answering.engine import check_transcript
from nemo_desta.answering.sampling import resolve_sampling
from nemo_desta.serving.settings import is_loopback
from nemo_desta.serving.web_talk import Talk

if TYPE_CHECKING:
    from gradio import Blocks

    from nemo_desta.models.desta import DestaModel

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = "500mb"
#: Interval of the check for old uploads, and the age at which they are deleted.
DELETE_SECS = (3600, 24 * 3600)
#: The browser blocks all external resources; Gradio's own scripts are inline.
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
}


def serve_page(model: "DestaModel", *, host: str = "127.0.0.1", port: int = 7860, **conversation: Any) -> None:
    """Serves the page until Ctrl-C; ``conversation``: see `make_page`."""
    page = make_page(model, **conversation)
    url = launch(page, host=host, port=port)
    print(f"the page is at {url} (Ctrl-C stops it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def launch(page: "Blocks", *, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serves a page in the background; returns its address. Raises OSError: the port is in use."""
    import gradio as gr
    from fastapi.middleware import Middleware

    if not is_loopback(host):
        logger.warning("the page listens on %s without a password: anyone who reaches this machine can use it", host)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            app_kwargs={"middleware": [Middleware(_Headers)]},
            theme=gr.themes.Default(**fonts),
            css=Path(__file__).with_suffix(".css").read_text("utf-8"),
        )
    except OSError as error:
        raise OSError(f"the page cannot listen on {host}, port {port}; choose another (page.port): {error}") from error
    return url


def make_page(
    model: "DestaModel",
    *,
    transcript: str = "given",
    system: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> "Blocks":
    """Builds the page without serving it.

    Raises:
        ImportError: Gradio is missing; the message has the install command. ConfigError: a wrong setting.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs Gradio: pip install gradio, or pip install 'nemo_desta[web]'") from error

    check_transcript(model, transcript)
    defaults = resolve_sampling(model.generation_config, **(sampling or {}))
    reads_transcripts = model.prompts.transcript.enabled

    def talk_of(state: Talk | None) -> Talk:
        return state or Talk(model, system=system, transcript=transcript, sampling={})

    with gr.Blocks(title="nemo_desta", analytics_enabled=False, delete_cache=DELETE_SECS, fill_width=True) as page:
        state = gr.State(None, time_to_live=DELETE_SECS[1])
        gr.Markdown("## Chat about audio")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                files = gr.File(
                    label="Audio files", file_count="multiple", file_types=["audio"], height=132, elem_id="files"
                )
                microphone = gr.Audio(
                    label="Or record", sources=["microphone"], type="filepath", format="wav", elem_id="microphone"
                )
                cards = gr.HTML(elem_id="clips", visible=False)
                remove = gr.Button("Remove these clips", size="sm", visible=False, elem_id="remove")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    temperature = gr.Slider(
                        0, 2, defaults.temperature, step=0.05, label="Temperature", info="0: greedy"
                    )
                    max_new_tokens = gr.Slider(
                        *(1, max(4096, defaults.max_new_tokens), defaults.max_new_tokens),
                        step=1,
                        precision=0,
                        label="Maximum new tokens, thinking included",
                    )
                    max_thinking_tokens = gr.Slider(
                        *(0, 4096, defaults.max_thinking_tokens or 0),
                        step=1,
                        precision=0,
                        label="Maximum thinking tokens",
                        info="0: no separate limit",
                    )
                    transcripts = gr.Radio(
                        [("none", "given"), ("by Whisper", "whisper")],
                        value=transcript if transcript == "whisper" else "given",
                        label="Transcripts of new clips",
                        visible=reads_transcripts,
                    )
            with gr.Column(scale=2, min_width=400):
                chat = gr.Chatbot(
                    label="Conversation",
                    height=520,
                    allow_tags=False,
                    latex_delimiters=[],
                    feedback_options=None,
                    buttons=["copy"],
                    elem_id="chat",
                    placeholder="Add audio and ask about it, or just ask.",
                )
                notice = gr.HTML(elem_id="notice", visible=False)
                with gr.Row():
                    prompt = gr.Textbox(
                        container=False,
                        show_label=False,
                        placeholder="What do you hear?",
                        scale=6,
                        lines=1,
                        max_lines=6,
                        elem_id="prompt",
                    )
                    ask = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="ask")
                    stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
                new = gr.Button("New conversation", size="sm", elem_id="new")

        waiting = [state, cards, remove, notice]

        def show_waiting(talk: Talk, error: Exception | None = None) -> tuple:
            some = bool(talk.session.waiting)
            text = f'<div class="notice" role="alert">{html.escape(str(error))}</div>' if error else ""
            problem = gr.update(value=text, visible=error is not None)
            return talk, gr.update(value=talk.cards, visible=some), gr.update(visible=some), problem

        def attach(paths: Any, given: Talk | None, whisper: str) -> tuple:
            talk, error = talk_of(given), None
            talk.session.transcript = whisper if reads_transcripts else talk.session.transcript
            try:
                talk.attach(paths if isinstance(paths, list) else [paths] if paths else [])
            except (ValueError, OSError, ImportError) as found:
                error = found
            return (*show_waiting(talk, error), None)

        def detach(given: Talk | None) -> tuple:
            talk = talk_of(given)
            talk.detach()
            return show_waiting(talk)

        def answer(text: str, given: Talk | None, heat: float, new_tokens: int, thinking_tokens: int) -> Any:
            talk, error = talk_of(given), None
            settings = {**vars(defaults), "temperature": float(heat), "max_new_tokens": int(new_tokens)}
            settings["max_thinking_tokens"] = int(thinking_tokens) or None
            try:
                for _ in talk.ask(text, settings):
                    yield talk, gr.skip(), gr.skip(), "", talk.messages, gr.skip()
            except (ValueError, OSError) as found:
                error = found
            *shown, problem = show_waiting(talk, error)
            yield *shown, problem, talk.messages, gr.skip() if error else ""

        def reset(given: Talk | None) -> tuple:
            if given is not None:
                given.stop()
            return (*show_waiting(talk_of(None)), [])

        files.upload(attach, [files, state, transcripts], [*waiting, files], concurrency_limit=4)
        microphone.stop_recording(
            attach, [microphone, state, transcripts], [*waiting, microphone], concurrency_limit=4
        )
        remove.click(detach, [state], waiting)
        answering = gr.on(
            [ask.click, prompt.submit],
            answer,
            [prompt, state, temperature, max_new_tokens, max_thinking_tokens],
            [*waiting, chat, prompt],
            concurrency_limit=1,  # the model answers one visitor at a time
            show_progress="hidden",
        )
        stop.click(lambda talk: talk and talk.stop(), [state], None, concurrency_limit=None)
        gr.on([new.click, chat.clear], reset, [state], [*waiting, chat], cancels=[answering])
    return page


class _Headers:
    """ASGI middleware: adds `SECURITY` to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
