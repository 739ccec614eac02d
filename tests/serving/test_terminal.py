"""The conversation as a person at a terminal sees it."""

import io
import signal

import soundfile

from nemo_desta.answering.engine import Delta
from nemo_desta.serving.session import ChatSession
from nemo_desta.serving.terminal import Terminal, printable
from tests.serving.serving_tools import noise

SHORT = {"max_new_tokens": 8, "temperature": 0.0}


def talk(session, *lines, **options):
    """What a terminal prints when these lines are typed; an exception among them is raised in its place."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    out = io.StringIO()
    Terminal(session, out=out, read=read, **options).run()
    return out.getvalue()


class Script(ChatSession):
    """A session whose answers are given; a KeyboardInterrupt among them is Ctrl-C at that moment."""

    def __init__(self, *deltas):
        self.deltas, self.transcript = deltas, "given"

    def ask(self, prompt):
        for delta in self.deltas:
            if isinstance(delta, BaseException):
                raise delta
            yield Delta(0, *delta, 1)


THOUGHT = [("I hear ", True, None), ("rain.", True, None), ("It ", False, None), ("rains.", False, "stop")]


def test_a_conversation_with_a_file(model, tmp_path):
    soundfile.write(tmp_path / "two words.wav", noise(0.5), 16_000)
    session = ChatSession(model, sampling=SHORT)
    file = tmp_path / "two words.wav"
    shown = talk(session, f'/audio "{file}"', "What is this?", "And now?", f"/save {tmp_path}/c.json", "/quit", "no")
    assert f"({file}: 0.5 s)" in shown
    answers = [message["content"] for message in session.messages if message["role"] == "assistant"]
    assert len(answers) == 2 and all(printable(answer) in shown for answer in answers)
    assert (tmp_path / "c.json").exists() and "no" not in session.messages[-1]["content"][:2]
    assert "limit of new tokens" in shown


def test_errors_are_lines_and_the_conversation_goes_on(model, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    session = ChatSession(model, sampling=SHORT)
    lines = [f"/audio {tmp_path}/bad.wav", "/audio /no/such.wav", "/adio x", "/audio 'open", "/audio", "Hello"]
    shown = talk(session, *lines)
    assert "AudioError: cannot read" in shown and "AudioError: no file '/no/such.wav'" in shown
    assert "no command /adio. Did you mean '/audio'?" in shown
    assert "Traceback" not in shown and len(session.messages) == 2


def test_reset_forgets(model):
    session = ChatSession(model, sampling=SHORT)
    talk(session, "Hello", "/reset")
    assert session.messages == []


def test_control_c_stops_the_answer_and_at_the_prompt_nothing():
    shown = talk(Script(("It ", False, None), KeyboardInterrupt()), KeyboardInterrupt(), "What is this?", "/help")
    assert "(/quit leaves)" in shown and "It \n(stopped)\n" in shown and "/audio FILE" in shown


def test_control_c_in_a_finalizer_is_not_lost():
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)  # an exception in here is printed and dropped

    class Session(Script):
        def ask(self, prompt):
            yield Delta(0, "It ", False, None, 1)
            Finalized()
            yield Delta(0, "rains.", False, None, 2)
            yield Delta(0, " And", False, "stop", 3)

    before = signal.getsignal(signal.SIGINT)
    shown = talk(Session(), "What is this?")
    assert "(stopped)" in shown and "And" not in shown
    assert signal.getsignal(signal.SIGINT) is before


def test_thinking_is_hidden_unless_it_is_asked_for():
    assert "rain." not in talk(Script(*THOUGHT), "What?")
    assert "It rains.\n" in talk(Script(*THOUGHT), "What?")
    assert "I hear rain.\n\nIt rains.\n" in talk(Script(*THOUGHT), "What?", show_thinking=True)


def test_a_terminal_with_colours_dims_thoughts_and_takes_the_waiting_line_back():
    dimmed = talk(Script(*THOUGHT), "What?", show_thinking=True, colour=True)
    assert "\x1b[2mI hear rain.\x1b[0m\n\nIt rains." in dimmed
    hidden = talk(Script(*THOUGHT), "What?", colour=True)
    assert "\x1b[2mthinking ...\r\x1b[K\x1b[0mIt rains." in hidden


def test_what_a_model_writes_cannot_move_the_cursor():
    shown = talk(Script(("\x1b[2J\x07ha\nha\t\x9b1m", False, "stop")), "What?", colour=True)
    assert "\x1b[2J" not in shown and "\x9b" not in shown and "\ufffd[2J\ufffdha\nha\t" in shown
