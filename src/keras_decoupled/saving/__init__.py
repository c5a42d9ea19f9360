"""What a file has: arrays (`state.py`), and the config of `Decoupled.get_config` (`config.py`)."""
