"""One assignment on many machines: a driver that lists and hands out names, workers that each own an engine.

What is decided is decided where no cluster is: who gets which files (``ledger``), what the driver does next
(``foreman``), what a worker does (``worker``). Only ``actors`` knows Ray.
"""
