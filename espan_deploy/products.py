"""Which operators multiply and add."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Convolutions and matrix products: what a network's cost and its layers are counted by."""

WEIGHT_OPS = PRODUCTS | {"Einsum"}
"""Operators that multiply data with weights: what a fold can save."""
