"""Survey 3.2: equations 1 to 11 as pure functions."""
