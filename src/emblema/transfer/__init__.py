"""Survey 6: systems that adapt a vision-language model to a task. One file each."""
