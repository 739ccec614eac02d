"""``python -m nemo_desta.demo``."""

import sys

from nemo_desta.demo.run import main

if __name__ == "__main__":  # espeak-ng speaks in processes of its own, which import this module again
    sys.exit(main())
