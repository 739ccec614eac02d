"""``python -m nemo_desta``: the command ``desta``. ``doctor`` and ``--version`` work in a broken install."""

import sys

from nemo_desta.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
