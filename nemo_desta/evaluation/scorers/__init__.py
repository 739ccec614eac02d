"""One module per benchmark: the authors' rules, and strict ones."""
