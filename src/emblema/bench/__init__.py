"""Experiments about the field as a whole: `emblema bench NAME`."""
