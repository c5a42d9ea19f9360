"""What is kept: the optimizer's arrays and its config."""
