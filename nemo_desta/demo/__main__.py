"""``python -m nemo_desta.demo``."""

import sys

from nemo_desta.demo.run import main

if __name__ == "__main__":  # spawned espeak-ng processes import this module again
    sys.exit(main())
