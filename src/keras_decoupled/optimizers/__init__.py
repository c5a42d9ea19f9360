"""The mathematics: one optimizer a file."""
