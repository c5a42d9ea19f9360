"""What is kept: arrays (`state.py`), and the config that `Decoupled.get_config` writes."""
