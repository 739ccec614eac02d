"""Models of and for others: `released` (the originals' weights), `export` (a folder with its `card`), `publish`."""
