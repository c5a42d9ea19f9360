"""Schedules, and the arguments about time. `core/clock.py` has what changes during training."""
