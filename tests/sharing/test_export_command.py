"""Export and import by command, and uploads to the hub."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing.export import export_model
from nemo_desta.sharing.export_command import ExportConfig, run_export
from nemo_desta.sharing.publish import push_folder
from tests.perception.projector.recipe import FIXTURES, load_weights

ROOT = Path(__file__).resolve().parents[2]
RELEASED = FIXTURES / "desta25_model"


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """DeSTA2.5 as it is published, small."""
    folder = tmp_path_factory.mktemp("desta25")
    shutil.copytree(RELEASED / "llm", folder / "llm")
    shutil.copytree(FIXTURES / "desta25_rows" / "tokenizer", folder / "llm", dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "whisper", folder / "openai" / "whisper-tiny")
    shutil.copy(RELEASED / "config.json", folder)
    connector = load_weights("desta25_qformer", "connector")
    tensors = {f"perception.connector.{name}": tensor for name, tensor in connector.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`: remembers what it was asked for."""

    def __init__(self, *, is_private=False, error=None):
        self.calls, self.is_private, self.error = [], is_private, error

    def create_repo(self, *args, **kwargs):
        repo_id, private, exist_ok = self._real("create_repo", args, kwargs, "repo_id", "private", "exist_ok")
        if self.error:
            raise self.error
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://hub.example/{repo_id}"

    def repo_info(self, *args, **kwargs):
        self._real("repo_info", args, kwargs)
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, *args, **kwargs):
        folder_path, repo_id = self._real("upload_folder", args, kwargs, "folder_path", "repo_id")
        self.calls.append(("upload", repo_id, sorted(file.name for file in Path(folder_path).iterdir())))

    def _real(self, name, args, kwargs, *wanted):
        """Values of arguments, if the real client takes them."""
        bound = inspect.signature(getattr(HfApi, name)).bind(None, *args, **kwargs)
        return [bound.arguments[key] for key in wanted]


class TestPush:
    def test_the_folder_is_uploaded_to_its_own_repository(self, place, tmp_path):
        hub = FakeHub(is_private=True)
        settings = {"model": str(place.path / "run"), "output": str(tmp_path / "mine")}
        line = run_export({**settings, "push": True, "repo_id": "me/mine", "private": True}, api=hub)
        assert line.endswith("pushed to https://hub.example/me/mine")
        assert hub.calls[0] == ("create", "me/mine", True, True)
        assert hub.calls[1][:2] == ("upload", "me/mine") and "projector.safetensors" in hub.calls[1][2]
        assert 'from_pretrained("me/mine"' in (tmp_path / "mine" / "README.md").read_text()

    def test_without_a_token_nothing_is_written(self, place, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        settings = {"model": str(place.path / "run"), "output": str(tmp_path / "mine")}
        with pytest.raises(ConfigError, match="set HF_TOKEN, or log in"):
            run_export({**settings, "push": True, "repo_id": "me/mine"})
        assert not (tmp_path / "mine").exists()

    def test_a_public_repository_is_no_private_one(self, tmp_path):
        hub = FakeHub(is_private=False)
        with pytest.raises(ConfigError, match="public, private=true was asked for: nothing was uploaded"):
            push_folder(tmp_path, "me/mine", private=True, api=hub)
        assert [call[0] for call in hub.calls] == ["create"]

    def test_a_refusal_of_the_hub_is_one_line(self, tmp_path):
        hub = FakeHub(error=RuntimeError("403 Forbidden\n\nyou may not"))
        with pytest.raises(ConnectionError, match="'me/mine' failed: RuntimeError: 403 Forbidden$"):
            push_folder(tmp_path, "me/mine", api=hub)


def composed(*words):
    with initialize_config_dir(str(ROOT / "conf" / "use"), version_base=None):
        return compose("export", overrides=list(words))


class TestCommand:
    def test_the_config_holds_what_is_read_and_nothing_else(self):
        fields = {"import" if name == "kind" else name for name in ExportConfig.__dataclass_fields__}
        assert set(composed()) == fields
        assert dict(composed()) == {
            "import" if name == "kind" else name: value for name, value in vars(ExportConfig()).items()
        }

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "give model=<folder> to export, or import="),
            (["model=m", "import=desta25", "source=s", "output=o"], "give model=<folder> to export, or import="),
            (["model=m"], "output .* must be given"),
            (["import=desta25", "output=o"], "import .* and source .* go together"),
            (
                ["import=desta25", "source=s", "output=o", "push=true", "repo_id=a/b"],
                "push: for exports; import or join first",
            ),
            (["model=m", "output=o", "push=true"], "needs repo_id=owner/name, found None"),
            (["model=m", "output=o", "push=true", "repo_id=mine"], "needs repo_id=owner/name, found 'mine'"),
            (["model=m", "output=o", "private=true"], "private=true goes with push=true"),
            (["model=m", "output=o", "+full_hash=true"], "'export.full_hash'. Did you mean 'full_hashes'"),
        ],
    )
    def test_settings_that_contradict_are_refused(self, words, message):
        with pytest.raises(ConfigError, match=message):
            run_export(composed(*words))

    def test_released_weights_are_imported_and_then_exported(self, download, tmp_path):
        """The original's own answer comes out of what was imported."""
        output = tmp_path / "imported"
        line = run_export(composed("import=desta25", f"source={download}", f"output={output}"))
        assert line == f"desta25 written to {output}"
        wanted = json.loads((RELEASED / "generate.json").read_text())["silence_text_overwritten"]
        wanted["conversations"][0][0]["audios"][0]["audio"] = str(RELEASED / "clip4_silence.flac")
        where = {"llm": str(download / "llm"), "encoders": {"whisper": str(download / "openai" / "whisper-tiny")}}
        folder = export_model(output, tmp_path / "mine")
        for opened in (DestaModel.from_pretrained(output), DestaModel.from_pretrained(folder, **where)):
            ids = opened.generate(wanted["conversations"], max_new_tokens=24, do_sample=False).tolist()
            assert ids == wanted["ids"]
        with pytest.raises(FileExistsError, match="overwrite=true replaces it"):
            run_export(composed("import=desta25", f"source={download}", f"output={output}"))

    @pytest.mark.parametrize("place", ["notes", "an LLM", "the source"])
    def test_an_import_replaces_no_other_folder(self, download, tmp_path, place):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "notes.txt").write_text("x")
        output = {"notes": tmp_path / "notes", "an LLM": download / "llm", "the source": download}[place]
        held = sorted(path for path in output.rglob("*"))
        with pytest.raises(FileExistsError, match="give another output"):
            run_export(composed("import=desta25", f"source={download}", f"output={output}", "overwrite=true"))
        assert sorted(path for path in output.rglob("*")) == held

    def test_an_import_that_was_killed_is_made_by_the_same_command(self, download, tmp_path, monkeypatch):
        command = composed("import=desta25", f"source={download}", f"output={tmp_path / 'imported'}")

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("nemo_desta.core.folder._make_portable", killed)
            with pytest.raises(KeyboardInterrupt):
                run_export(command)
        assert list(tmp_path.iterdir()) == []
        run_export(command)
        assert DestaModel.from_pretrained(tmp_path / "imported")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["model={run}", "output={tmp}/a=b"], 0, "exported to {tmp}/a=b"),
        (["model={tmp}", "output={tmp}/x"], 1, "FileNotFoundError: nothing trained in '{tmp}'"),
        (["--help"], 0, "desta export import=desta25"),
    ],
)
def test_the_program_says_in_one_line_what_came_of_it(place, tmp_path, words, status, message):
    fill = {"run": place.path / "run", "tmp": tmp_path}
    command = [sys.executable, str(ROOT / "examples" / "desta_export.py"), *(word.format(**fill) for word in words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert message.format(**fill) in (done.stderr if status else done.stdout)
    if status:
        assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
