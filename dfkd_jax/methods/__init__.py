"""Ways from a teacher to a student. None of them can reach real images."""
