"""Blocks that two or more methods use: queues, moving averages, masks."""
