"""Engines: built from recipes, described by manifests, cached by content."""
