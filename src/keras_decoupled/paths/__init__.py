"""Variable paths, in pure Python: what a key hits, and which saved entry a variable continues."""
