"""Interfaces to a trained model: HTTP server, web page, terminal, files. Each module imports only what it needs."""
