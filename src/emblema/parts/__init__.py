<<<<<<< HEAD
"""Blocks that two or more systems use."""
=======
"""Blocks that two or more methods use: queues, moving averages, masks."""
>>>>>>> objectives
