"""Frozen audio encoders, the trainable projector, and the module that combines them."""
