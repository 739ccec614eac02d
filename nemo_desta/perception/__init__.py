"""Frozen audio encoders, the trainable projector, and the module that joins them."""
