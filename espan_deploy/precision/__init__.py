"""Reduced precision: a strongly typed FP16 graph, and the gate that it must pass before it ships."""
