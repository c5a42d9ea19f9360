"""When: learning rates, η, restarts and T."""
