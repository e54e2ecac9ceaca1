"""Small networks that learn from a teacher."""
