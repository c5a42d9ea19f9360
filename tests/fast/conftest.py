"""Each file here is about one backend, and imports it: the files about the others are left out."""

import keras

OTHERS = {"torch", "tensorflow"} - {keras.backend.backend()}
collect_ignore_glob = [f"test_{other}_*" for other in OTHERS]
