"""Jobs with a config: Hydra composes it from conf/, the user's folder and the words of the command line."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.cli.commands import Command
from nemo_desta.cli.literals import quote_literals
from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.sources import conf_folder

#: Nothing of Hydra's own is written, and its log does not touch ours.
HYDRA = ("hydra.output_subdir=null", "hydra.run.dir=.", "hydra/job_logging=none", "hydra/hydra_logging=none")
#: Options of Hydra that are passed on: without a value, and with one.
HYDRAS_SWITCHES = (("-m", "--multirun"), ("--resolve",), ("--hydra-help",))
HYDRAS_OPTIONS = (("-c", "--cfg"), ("-p", "--package"), ("-i", "--info"))


def run_configured(name: str, command: Command, words: Sequence[str], job: Callable[[Any], int]) -> int:
    """Compose the config of ``command`` and give it to ``job``; returns its exit status.

    ``--config-name`` selects a config, ``--config-dir`` adds a folder of the user's, ``--config-path`` replaces the
    shipped one. The other options are Hydra's: ``--cfg job`` prints the config, ``-m`` runs several.

    Raises:
        ConfigError: there is no such config or folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-cn", "--config-name", default=command.config)
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-cp", "--config-path", default=conf_folder() / command.folder)
    for flags in HYDRAS_SWITCHES:
        parser.add_argument(*flags, dest="switches", action="append_const", const=flags[-1], default=[])
    for flags in HYDRAS_OPTIONS:
        parser.add_argument(*flags, dest="switches", action="append", type=f"{flags[-1]}={{}}".format)
    options, settings = parser.parse_known_args(words)
    if unknown := [word for word in settings if word.startswith("-")]:
        known = re.findall(r"--[a-z-]+", parser.format_help())
        raise ConfigError(f"unknown option {unknown[0]}.{nearest(unknown[0], known)}")
    options.config_path = _folder(options.config_path)
    options.config_dir = options.config_dir and _folder(options.config_dir)
    config = _config_file(options)
    if options.help:
        print(_help(name, command, config))
        return 0

    import hydra  # after all mistakes that need no config
    from hydra.core.hydra_config import HydraConfig

    typed, status, failed = sys.argv, 0, []
    switches = [*options.switches, *([f"--config-dir={options.config_dir}"] if options.config_dir else [])]
    own = (*HYDRA, f"hydra.job.name=desta_{name}", *command.more)
    literal = quote_literals(settings) if command.folder == "use" else settings
    # A mapping may bring keys that the config does not list, such as names of benchmarks; the job checks all keys.
    literal = [f"++{word}" if re.match(r"[\w.]+=\{", word) else word for word in literal]
    sys.argv = [typed[0], *switches, *own, *literal]

    def task(cfg: Any) -> None:
        nonlocal status
        sys.argv = typed  # Lightning starts the other processes of a run with it
        try:
            status = max(status, job(cfg))
        except Exception as error:  # Hydra would print about it
            failed.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and the caller reports them
    try:
        hydra.main(str(options.config_path), options.config_name, version_base=None)(task)()
    finally:
        sys.argv = typed
        HydraConfig.instance().cfg = None  # the next job in this process is not of this one's
    if failed:
        raise failed[0]
    return status


def _folder(path: str | Path) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"no folder of configs at '{path}'")
    return folder


def _config_file(options: argparse.Namespace) -> Path:
    folders = [folder for folder in (options.config_dir, options.config_path) if folder]
    name = options.config_name.removesuffix(".yaml")
    for folder in folders:
        if (file := folder / f"{name}.yaml").is_file():
            return file
    known = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    raise ConfigError(f"no config '{name}' in {' or '.join(map(str, folders))}.{nearest(name, known)}")


def _help(name: str, command: Command, config: Path) -> str:
    """The config's file with its comments: they explain the settings."""
    others = sorted(file.stem for file in (conf_folder() / command.folder).glob("*.yaml"))
    lines = [f"desta {name}: {command.help}", ""]
    if command.folder != "use":
        lines += [f"--config-name <name>: {', '.join(others)}; --config-dir <folder> adds your own configs"]
        groups = sorted(path.name for path in (conf_folder() / command.folder).iterdir() if path.is_dir())
        shown = [group for group in groups if group not in ("use", "recipes")]
        for group in shown:
            members = sorted(file.stem for file in (conf_folder() / command.folder / group).glob("*.yaml"))
            lines.append(f"{group}=<name>: {', '.join(members)}")
        lines += ["--cfg job prints the whole config; -m a=1,2 runs one job per value", ""]
    text = re.sub(r"\nhydra:\n.*", "\n", config.read_text(encoding="utf-8"), flags=re.DOTALL)
    return "\n".join([*lines, f"Settings (key=value), {config.name}:", "", text.rstrip()])
