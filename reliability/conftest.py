"""As in tests/: fresh automatic names and a fixed seed for every test; no deadline for an example."""

import hypothesis
import keras
import pytest

hypothesis.settings.register_profile("long", deadline=None)
hypothesis.settings.load_profile("long")


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
