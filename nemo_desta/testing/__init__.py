"""Tiny models, tokenizers, rows and a scripted HTTP server, for tests and benchmarks."""
