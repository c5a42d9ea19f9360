"""What is subtracted, and who gets it."""
