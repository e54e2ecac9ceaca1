"""Shared machinery: the one loop, checkpoints, logs, plans."""
