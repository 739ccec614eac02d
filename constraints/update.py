"""Writes constraints/<stack>.txt: every version that resolves with what <stack>.in chooses by hand.

    python constraints/update.py latest [--keep]

Nothing is installed: pip resolves all extras in a dry run. ``--keep`` holds the versions of the present file, so that
only what the .in file or package_info.py asks for moves. Run it with Python 3.11; versions that need more than
Python 3.10 get a marker, and 3.10 takes the newest that it can.
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

#: Extras that pin packages of the stack otherwise.
APART = {"vllm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", choices=sorted(p.stem for p in ROOT.glob("constraints/*.in")))
    parser.add_argument("--keep", action="store_true", help="hold the versions of the present .txt file")
    args = parser.parse_args()

    chosen = ROOT / "constraints" / f"{args.stack}.in"
    pinned = chosen.with_suffix(".txt")
    lines = [constraint(item["metadata"]) for item in resolve([chosen] + [pinned] * args.keep)]
    pinned.write_text(header(args.stack) + "\n".join(sorted(filter(None, lines))) + "\n", encoding="utf-8")
    print(f"{pinned.relative_to(ROOT)}: {len(lines) - 1} packages")


def resolve(constraint_files: list[Path]) -> list[dict]:
    """What pip would install, with metadata, for this package and its extras."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--no-build-isolation", "--report", report.name]
        for path in constraint_files:
            command += ["-c", str(path)]
        subprocess.run([*command, f".[{','.join(EXTRAS.keys() - APART)}]"], cwd=ROOT, check=True)
        return json.loads(Path(report.name).read_text())["install"]


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
