"""`export` of a trained model with its `card`, `publish` to the hub, import of `released` weights."""
