"""What lmms-eval's plugin hook reads: the name of a model's module here -> its class."""

AVAILABLE_MODELS = {"desta": "Desta"}
