"""Survey 3.3: how two encoders make one vision-language model."""
