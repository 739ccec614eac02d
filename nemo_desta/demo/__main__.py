"""``python -m nemo_desta.demo``."""

import sys

from nemo_desta.demo.run import main

sys.exit(main())
