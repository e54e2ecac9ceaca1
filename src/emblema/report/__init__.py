"""Survey 8: result lines, and the tables and pages made from them."""
