"""The mathematics, one optimizer a file: `adamw.py` shows the form. `stock.py`: Keras' classes."""
