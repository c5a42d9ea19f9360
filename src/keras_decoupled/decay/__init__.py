"""What is subtracted (the formula is in `kinds.py`), and who gets it (`rules.py`)."""
