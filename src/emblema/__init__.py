"""Vision-language models for vision tasks."""
