"""When: schedules, and the arguments about time. What moves in training: `core/clock.py`."""
