"""Between Keras and the mathematics: one update, its numbers, and the state of each variable."""
