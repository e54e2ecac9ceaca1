"""Survey 4: data sets. One reader a file layout, one card a data set."""
