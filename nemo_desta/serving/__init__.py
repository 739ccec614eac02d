"""A trained model for people and programs: HTTP server, web page, terminal, files; each imports what it needs."""
