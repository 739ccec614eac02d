"""Writes constraints/<stack>.txt: every version that resolves with what <stack>.in chooses by hand.

    python constraints/update.py latest [--keep]

Nothing is installed: pip resolves the stack's extras in a dry run. ``--keep`` holds the versions of the present file,
so that only what the .in file or package_info.py asks for moves. Run it with Python 3.11; versions that need more than
Python 3.10 get a marker, and 3.10 takes the newest that it can. Lines for megatron-core are copied as they are: its
newer versions ask for Python 3.12, although their code runs on 3.11.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemo_desta.package_info import EXTRAS  # noqa: E402  (needs the path above; imports nothing else)

#: Extras of each stack. vLLM pins its own torch, so its stack has no NeMo.
STACK_EXTRAS = {"vllm": ["vllm", "recipes", "serve", "eval"]}
ALL_BUT_VLLM = [extra for extra in EXTRAS if extra not in ("vllm", "megatron")]
VERBATIM = "megatron-core"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", choices=sorted(p.stem for p in ROOT.glob("constraints/*.in")))
    parser.add_argument("--keep", action="store_true", help="hold the versions of the present .txt file")
    args = parser.parse_args()

    chosen = ROOT / "constraints" / f"{args.stack}.in"
    pinned = chosen.with_suffix(".txt")
    extras = STACK_EXTRAS.get(args.stack, ALL_BUT_VLLM)
    lines = [constraint(item["metadata"]) for item in resolve(extras, [chosen] + [pinned] * args.keep)]
    lines += [line for line in code_lines(chosen) if line.startswith(VERBATIM)]
    pinned.write_text(header(args.stack) + "\n".join(sorted(filter(None, lines))) + "\n", encoding="utf-8")
    print(f"{pinned.relative_to(ROOT)}: {len(lines) - 1} packages")


def code_lines(file: Path) -> list[str]:
    """The lines of a constraint file without comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def resolve(extras: list[str], constraint_files: list[Path]) -> list[dict]:
    """What pip would install, with metadata, for this package with ``extras``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--no-build-isolation", "--report", str(report)]
        for number, path in enumerate(constraint_files):
            usable = Path(folder) / f"{number}.txt"
            usable.write_text("\n".join(line for line in code_lines(path) if not line.startswith(VERBATIM)))
            command += ["-c", str(usable)]
        subprocess.run([*command, f".[{','.join(extras)}]"], cwd=ROOT, check=True)
        return json.loads(report.read_text())["install"]


def constraint(metadata: dict) -> str | None:
    """`name==version`, without a local build tag, with a marker where Python 3.10 is too old for it."""
    name = canonicalize_name(metadata["name"])
    if name == "nemo-desta" or name.startswith("nvidia-"):  # torch pins its own CUDA wheels
        return None
    supports_310 = "3.10" in SpecifierSet(metadata.get("requires_python", ""))
    marker = "" if supports_310 else ' ; python_version >= "3.11"'
    return f"{name}=={metadata['version'].partition('+')[0]}{marker}"


def header(stack: str) -> str:
    return f"# Every version of the {stack} stack, written by constraints/update.py from constraints/{stack}.in.\n"


if __name__ == "__main__":
    main()
