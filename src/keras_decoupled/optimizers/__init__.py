"""The mathematics, one file per optimizer. Read `adamw.py` first; `stock.py` wraps others."""
