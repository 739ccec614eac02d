"""One scorer module per benchmark, with the authors' rules and strict ones, and their shared parts."""
