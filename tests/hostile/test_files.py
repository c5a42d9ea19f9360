"""What only a `.keras` file can show: cut off, with other bytes, in safe mode. `test_configs` changes what is in it."""

import functools
import io
import json
import random
import zipfile
from collections import Counter

import keras
import numpy as np
import pytest

from effort import effort
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW

from .inputs import OBJECTS, SOME, put
from .watch import keep, outcome

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
X, Y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
FALLING = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 5}
BY_BIAS = {"weight_decays": {"bias": (0.1, 0.2)}, "use_ema": True}
MAKERS = {
    "adamw": lambda model: AdamW(CosineWarmRestarts(0.01, 5), model=model, **BY_BIAS),
    "nadamw": lambda model: NadamW(0.01, weight_decay=FALLING),
    "sgdw": lambda model: SGDW(0.01, 0.9, weight_decay=1e-3, **ANNEALING),
    "lambda": lambda model: AdamW(lambda: 0.25, weight_decay=1e-3),
}
NAMES = [name for name in MAKERS if name != "lambda"]
pytestmark = [
    pytest.mark.reliability,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # a strong decay; a lambda; a file's
]


@pytest.fixture(scope="module")
def members_of(tmp_path_factory):
    """A function of an optimizer's name: {member: bytes} of a file that was trained for two updates."""

    @functools.cache
    def members(name):
        keras.utils.clear_session(free_memory=False)
        body = keras.layers.Dense(2, kernel_regularizer="l2", name="body")
        model = keras.Sequential([keras.Input((3,)), body, keras.layers.Dense(1, name="head")])
        model.compile(MAKERS[name](model), loss="mse", run_eagerly=True)
        for _ in range(2):
            model.train_on_batch(X, Y)
        file = tmp_path_factory.mktemp("files") / "m.keras"
        model.save(file)
        with zipfile.ZipFile(file) as archive:
            return {member: archive.read(member) for member in archive.namelist()}

    return members


def pack(members):
    """A .keras file of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """A function that loads bytes and trains: "works", or the error's name."""
    file = tmp_path / "hostile.keras"

    def use(ours):
        try:
            model = keras.models.load_model(file)
        except ValueError as error:  # Keras makes one of any error in `load_own_variables`
            if ours and "for object <keras_decoupled" in str(error):
                assert "Received" in str(error)  # noqa: PT017
            raise
        if getattr(model, "compiled", False) and model.optimizer is not None:
            variables = model.trainable_variables
            model.optimizer.apply([keras.ops.zeros(v.shape, v.dtype) for v in variables], variables)

    def result(content, ours=False):
        """`ours`: what is wrong is no matter of HDF5, whose own errors come out as they are."""
        file.write_bytes(content)
        return outcome(use, ours, seconds=60)

    return result


@pytest.mark.parametrize("name", effort(NAMES[:1], NAMES))
def test_a_file_that_is_cut_off_is_refused(name, members_of, read, record_property):
    """A zip's list of members is at its end, and half of them."""
    members, rng = members_of(name), random.Random(0)
    whole = pack(members)
    assert read(whole) == "works"
    ends = [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(effort(3, 200)))]
    files = [whole[:end] for end in ends]
    for end in ends:  # and members of it
        for member in (CONFIG, WEIGHTS):
            data = members[member]
            files.append(pack(members | {member: data[: end * len(data) // len(whole)]}))
    tally = Counter(map(read, files))
    keep(record_property, tally)
    assert not tally["works"], tally


@pytest.mark.parametrize("where", ["file", CONFIG, WEIGHTS, "layout"])
def test_flipped_bytes(where, members_of, read, record_property):
    """In a file, where checksums tell; in a member that is packed anew; in what the layout says of our arrays."""
    rng, tally = random.Random(1), Counter()
    member = WEIGHTS if where == "layout" else where
    for i in range(effort(12, 700)):
        members = members_of(NAMES[i % len(NAMES)])
        data = bytearray(pack(members) if where == "file" else members[member])
        start = data.index(b'{"version"') if where == "layout" else 0
        end = data.index(b"}}", start) if where == "layout" else len(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(start, end)] ^= rng.randrange(1, 256)
        content = bytes(data) if where == "file" else pack(members | {member: bytes(data)})
        tally[read(content, ours=where == "layout")] += 1
    keep(record_property, tally)
    assert len(tally) > (where != "file"), tally  # of a whole file each byte is checked


@pytest.mark.parametrize("what", SOME)
def test_a_hostile_object_in_a_file(what, members_of, read):
    """Keras reads a file's config as `from_config` does, in safe mode; all places are tried there."""
    members = members_of("nadamw")
    config = json.loads(members[CONFIG])
    put(config, ("compile_config", "optimizer", "config", "learning_rate"), OBJECTS[what])
    result = read(pack(members | {CONFIG: json.dumps(config).encode()}))
    if "schedule of" not in what:  # Keras makes these
        assert result in ("ValueError", "TypeError")


def test_a_lambda_needs_safe_mode_off(members_of, tmp_path):
    file = tmp_path / "m.keras"
    file.write_bytes(pack(members_of("lambda")))
    with pytest.raises(ValueError, match="lambda"):
        keras.models.load_model(file)
    again = keras.models.load_model(file, safe_mode=False)
    assert float(again.optimizer.learning_rate) == 0.25
    with pytest.raises(ValueError, match="lambda"):
        keras.models.load_model(file)
