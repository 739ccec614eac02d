"""Reference pages from the code: commands, settings with their defaults and comments, the API of each room."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.cli.commands import COMMANDS
from nemo_desta.sources import conf_folder
from nemo_desta.verified import STATUSES, cards, table

ROOT = Path(__file__).resolve().parents[2]


class Section(NamedTuple):
    """One table of settings: a dataclass, and the config file whose comments explain its keys."""

    title: str
    module: str
    name: str
    config: str = ""


SECTIONS = [
    Section("Training: `model`", "nemo_desta.config", "ModelConfig", "desta25.yaml"),
    Section("Training: `model.llm`", "nemo_desta.config", "LLMConfig", "desta25.yaml"),
    Section("Training: `model.llm.lora`", "nemo_desta.config", "LoraConfig"),
    Section("Training: `model.perception`", "nemo_desta.config", "PerceptionConfig", "desta25.yaml"),
    Section("Training: `model.prompt`", "nemo_desta.config", "PromptConfig", "desta25.yaml"),
    Section("Training: `model.prompt.transcript`", "nemo_desta.config", "TranscriptConfig"),
    Section("Training: loaders of `data`", "nemo_desta.data.settings", "LoaderSettings", "data/rows.yaml"),
    Section("Recipes: `desta generate`", "nemo_desta.recipes.settings", "RecipeConfig", "recipes/self_generate.yaml"),
    Section("Recipes: `gates`", "nemo_desta.recipes.gates", "GatesConfig", "recipes/self_generate.yaml"),
    Section("`desta chat`", "nemo_desta.serving.chat_command", "ChatConfig", "use/chat.yaml"),
    Section("`desta chat`: `sampling`", "nemo_desta.serving.chat_command", "SamplingConfig", "use/chat.yaml"),
    Section("`desta chat`: `batch`", "nemo_desta.serving.chat_command", "BatchConfig", "use/chat.yaml"),
    Section("`desta serve`", "nemo_desta.serving.settings", "ServerSettings", "use/serve.yaml"),
    Section("`desta serve`: the model", "nemo_desta.serving.settings", "Served", "use/serve.yaml"),
    Section("`desta evaluate`", "nemo_desta.evaluation.settings", "EvaluateSettings", "use/evaluate.yaml"),
    Section("`desta evaluate`: `rows`", "nemo_desta.evaluation.settings", "RowsSettings", "use/evaluate.yaml"),
    Section("`desta export`", "nemo_desta.sharing.export_command", "ExportConfig", "use/export.yaml"),
]


def rooms() -> list[str]:
    """Folders and modules of the package, by name."""
    package = ROOT / "nemo_desta"
    found = [path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return sorted(name for name in found if not name.startswith("_"))


def api(room: str) -> str:
    """The page of a room: its modules with their public names, from the docstrings."""
    folder = ROOT / "nemo_desta" / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    lines = [f"# {room}", ""]
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        lines += [
            f"## {'.'.join(parts[1:]).removesuffix('.__init__')}",
            "",
            f"::: {'.'.join(parts).removesuffix('.__init__')}",
        ]
        lines += ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false", ""]
    return "\n".join(lines)


def commands() -> str:
    """The page of the jobs of ``desta``, with the comments of their configs."""
    lines = ["# Commands", "", "```", "desta <job> [settings]", "```", ""]
    for name, command in COMMANDS.items():
        lines += [f"## desta {name}", "", f"{command.help[0].upper()}{command.help[1:]}.", ""]
        if command.config and not command.more:
            folder = conf_folder() / command.folder
            for file in sorted(folder.glob("*.yaml"), key=lambda file: (file.stem != command.config, file.stem)):
                title = f"### --config-name {file.stem}" if command.folder != "use" else ""
                if title or file.stem == command.config:
                    lines += [title, "", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def settings() -> str:
    """The page of all settings: key, type, default, meaning."""
    lines = ["# Settings", "", "Keys of the configs, by section. `???` must be given.", ""]
    for section in SECTIONS:
        cls = getattr(importlib.import_module(section.module), section.name)
        notes = {**yaml_comments(section.config), **field_comments(cls)}
        lines += [f"## {section.title}", "", *(inspect.getdoc(cls) or "").splitlines(), ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        for field in dataclasses.fields(cls):
            kind = re.sub(r"\b\w+\.(?=\w)", "", _kind(field.type)).replace(" | ", " or ")
            note = notes.get(field.name, "").replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{field.name}` | `{kind}` | {_default(field)} | {note} |")
        lines.append("")
    return "\n".join(lines)


def _kind(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)


def _default(field: dataclasses.Field) -> str:
    value: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "must be given"
    if dataclasses.is_dataclass(value):
        return f"see {type(value).__name__}"
    text = json.dumps(value, ensure_ascii=False, default=str).replace("|", "\\|")
    return f"`{text}`" if len(text) <= 60 else "see the config"


def verified() -> str:
    """The page of what was run where: the table of all cards, then each card in full."""
    found = cards()
    lines = ["# What was run where", "", *(f"- *{status}*: {meaning}" for status, meaning in STATUSES.items())]
    lines += ["", table(found), ""]
    for card in found:
        versions = ", ".join(f"{name} {' or '.join(card.versions_of(name))}" for name in card.versions or {})
        facts = {"Result": card.expected, "Hardware": card.hardware, "Versions": versions, "Date": card.date}
        facts |= {"Commit": card.commit and f"`{card.commit}`", "Limits": card.notes}
        lines += [f"## {card.capability}", "", f"*{card.status}*. {card.what}", "", "```bash", card.command, "```", ""]
        lines += [f"- {name}: {value}" for name, value in facts.items() if value] + [""]
    return "\n".join(lines)


def yaml_comments(config: str) -> dict[str, str]:
    """Key -> the comment behind it in a shipped config."""
    text = (conf_folder() / config).read_text(encoding="utf-8") if config else ""
    return {key: note for key, note in re.findall(r"^ *([\w]+):[^#\n]*# (.+)$", text, flags=re.MULTILINE)}


def field_comments(cls: type) -> dict[str, str]:
    """Field -> the comment behind it in the dataclass."""
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.+)$", inspect.getsource(cls), flags=re.MULTILINE))


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, code, printed outputs and pictures."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                lines += [f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">', ""]
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                lines += ["```text", text.rstrip(), "```", ""]
    return "\n".join(lines)
