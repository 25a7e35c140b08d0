"""Benchmarks: latency that can be trusted, quality by the field's definitions, and how far from the limit it is.

``measure`` times, ``statistics`` reads the times, ``quality``, ``score``, ``roofline`` and ``costs`` put them in
relation, ``suite`` runs it all into one JSON document, and the reports show that document and nothing else.
"""
