"""Trains ESPAN in its multi-branch form, from a folder of photographs to a checkpoint (``python -m training``)."""
