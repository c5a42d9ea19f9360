"""Variable paths. Pure Python: which key means which path, which saved entry a variable continues."""
