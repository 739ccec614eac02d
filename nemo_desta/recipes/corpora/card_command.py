"""``desta card labels.csv``: proposes a card for a table of labels and prints it, or writes it with ``-o``."""

import argparse
import sys
from pathlib import Path

from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.propose import propose_card


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status. Errors are one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="desta card",
        description="Propose a card (the description of a corpus) from the columns of a table of labels.",
        epilog="Read the proposal through, then: desta generate corpus=card.yaml data_root=FOLDER llm=... output=...",
    )
    parser.add_argument("table", help="a .csv, .tsv, .jsonl or .json file, also .gz or .zst")
    parser.add_argument("-o", "--output", type=Path, help="write the card to this file instead of the screen")
    parser.add_argument("--force", action="store_true", help="replace the output file if it exists")
    args = parser.parse_args(argv)
    try:
        text = propose_card(args.table)
        if args.output is None:
            sys.stdout.write(text)
            return 0
        if args.output.exists() and not args.force:
            raise FileExistsError(f"{args.output} exists; --force replaces it")
        args.output.write_text(text, encoding="utf-8")
    except (CorpusError, OSError) as error:
        print(f"desta card: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: read it through before you generate rows")
    return 0
