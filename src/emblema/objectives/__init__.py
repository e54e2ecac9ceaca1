"""Survey section 3.2: the training objectives, Eqs. 1-11, as pure functions."""
