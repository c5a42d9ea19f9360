"""The depth of each layer of a real ResNet50, beside that which its graph gives. JAX takes long to make one."""

import keras
import pytest

from keras_decoupled import AdamW, layerwise_lr_multipliers, no_decay


def upstream(model):
    """The names of all layers before each layer, by a walk along the tensors."""
    makers = {id(layer.output): layer for layer in model.layers}
    found = {}
    for layer in model.layers:  # from input to output
        before = [makers[id(x)].name for x in keras.tree.flatten(layer.input) if layer.name != "in"]
        found[layer.name] = set(before).union(*(found[name] for name in before if name in found))
    return found


@pytest.fixture(scope="module")
def resnet():
    inputs = keras.Input((32, 32, 3), name="in")
    return keras.applications.ResNet50(weights=None, input_tensor=inputs, classes=3)


def test_each_block_ends_in_an_addition(resnet):
    multipliers = layerwise_lr_multipliers(resnet, 0.75)
    depths = set()
    for name, before in upstream(resnet).items():
        additions = sum(other.endswith("_add") for other in before)
        depth = additions + 1 if "pool1_pool" in before else 0
        for v in resnet.get_layer(name).weights:
            depths.add(depth)
            assert multipliers[v.path] == pytest.approx(0.75 ** (17 - depth)), v.path
    assert depths == set(range(18))  # 16 blocks


def test_inside_another_model(resnet):
    """The rules of the backbone's variables stay what they were; the head has 1."""
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(resnet(inputs)))
    alone, inside = (layerwise_lr_multipliers(m, 0.75) for m in (resnet, model))
    assert {path: inside[path] for path in alone} == alone
    assert inside["head/kernel"] == inside["head/bias"] == 1


def test_only_kernels_are_decayed(resnet):
    optimizer = AdamW(weight_decay=0.1, weight_decays=no_decay(resnet))
    for row in optimizer.explain(resnet).rows:
        assert row["l2"] == (0.1 if row["path"].endswith("/kernel") else 0), row
