"""Inference backends, by name."""
