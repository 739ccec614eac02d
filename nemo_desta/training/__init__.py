"""Lightning glue: fit(cfg), preflight checks, callbacks, safe checkpoints."""
