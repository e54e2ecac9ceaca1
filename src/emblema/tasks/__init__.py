"""Survey 3.4: evaluation."""
