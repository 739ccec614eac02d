"""``python -m nemo_desta``: versions of the stack, and missing packages. Works in a broken install."""

import argparse
import sys

from nemo_desta.doctor import doctor, versions


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 1 when ``doctor`` finds that training cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_desta", description="The versions of the stack, and what is missing in it."
    )
    parser.add_argument("--version", action="store_true", help="print the versions of the stack")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("doctor", help="what is installed, what is missing, and the line that installs it")
    args = parser.parse_args(argv)

    if args.version:
        print(versions())
    elif args.command == "doctor":
        report, can_train = doctor()
        print(report)
        return 0 if can_train else 1
    else:
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
