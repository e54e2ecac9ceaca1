"""Survey 7: systems that teach a detector or segmenter what a vision-language model knows. One file each."""
