"""Survey 3.1: encoders of images and texts, as towers with doors."""
