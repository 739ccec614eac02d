"""Read by lmms-eval's plugin hook: module name of a model in this package -> class name."""

AVAILABLE_MODELS = {"desta": "Desta"}
