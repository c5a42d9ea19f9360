"""Keras' own tests with our classes in the place of Keras'. `nox -s tests` and `keras-tests` load it.

A test of `BY_DESIGN` runs too and has to fail: an entry that is no longer needed, or that names no
test, is an error. So is a Keras in whose tests this plugin replaces nothing: the entries would pass.
"""

import functools
import operator

import keras
import pytest
from keras.src import optimizers

import keras_decoupled

OURS = {
    name: getattr(keras_decoupled, name)
    for name in keras_decoupled.__all__
    if hasattr(keras.optimizers, name)
}
OURS |= {"Adam": keras_decoupled.AdamW, "SGD": keras_decoupled.SGDW}
OURS["Nadam"] = functools.partial(keras_decoupled.NadamW, momentum_decay=1.0)  # Keras' Nadam

BY_DESIGN = {
    "optimizer_test": {
        "OptimizerTest.test_optimizer_auto_naming": "our classes have names of their own",
        "OptimizerTest.test_setting_lr_to_callable_untracks_lr_var": "counts variables: we have more",
    },
    "adamw_test": {
        "AdamWTest.test_single_step": "golden numbers of a coupled decay, 0.004 by default",
        "AdamWTest.test_weight_decay_is_none": "None is our default: no decay",
    },
    "nadam_test": {
        "NadamTest.test_build_with_empty_var_list": "reads the private `_u_product`",
    },
    "sgd_test": {
        "SGDTest.test_invalid_momentum": "our message has another rule: a momentum of 1 is refused",
        "SGDTest.test_single_step": "counts variables: we have more",
    },
    "multi_optimizer_test": {
        "MultiOptimizerTest.test_serialization": "compares the class name with Adam",
    },
    "model_test": {
        "ModelTest.test_get_state_tree": "our state tree: adam_w, and no `learning_rate`",
        "ModelTest.test_set_state_tree": "our state tree: adam_w, and no `learning_rate`",
    },
    "saving_lib_test": {
        "SavingTest.test_compile_preserved_basic_sequential": "paths in our config change in a load",
        "SavingTest.test_compile_preserved_custom_sequential": "paths in our config change in a load",
        "SavingTest.test_compile_preserved_subclassed": "paths in our config change in a load",
        "SavingTest.test_saved_module_paths_and_class_names": "our config holds a table once built",
        "SavingBattleTest.test_legacy_load_skips_missing_nested_containers": (
            "Keras' wheel lacks the file that it reads"
        ),
    },
    "learning_rate_scheduler_test": {
        "LearningRateSchedulerTest.test_throws_when_optimizer_has_schedule": (
            "a rate over a schedule may be set"
        ),
    },
    "reduce_lr_on_plateau_test": {
        "ReduceLROnPlateauTest.test_throws_when_optimizer_has_schedule": (
            "a rate over a schedule may be set"
        ),
    },
    "trainer_test": {
        f"TestTrainer.test_fit_sparse_{kind}_{mode}": "mocks `assign_sub`, where our step is caught"
        for kind in ("tf", "jax", "scipy")
        for mode in ("eager", "graph")
    },
}


def pytest_configure():
    """Replace names of `keras.optimizers` and strings such as "adam", before tests are imported."""
    if keras.backend.backend() == "torch":
        # Keras finds the torch class of a stock class by the name that is now ours.
        stock = [getattr(keras.optimizers, name) for name in OURS]
        on_torch = {one: type(one.__new__(one)) for one in stock}
        new = lambda cls, *_, **__: object.__new__(on_torch.get(cls, cls))  # noqa: E731
        optimizers.optimizer.BackendOptimizer.__new__ = new
    for name, ours in OURS.items():
        setattr(optimizers, name, ours)
        optimizers.ALL_OBJECTS_DICT[name.lower()] = getattr(ours, "func", ours)  # needs a class


def pytest_collection_modifyitems(items):
    """Replace the classes that a test module has imported, and mark what fails by design."""
    for module in {item.module for item in items}:
        for name in OURS.keys() & vars(module):
            setattr(module, name, OURS[name])
        for name in BY_DESIGN.get(module.__name__.rpartition(".")[2], ()):
            operator.attrgetter(name)(module)  # an AttributeError: there is no such test any more
    for item in items:
        reasons = BY_DESIGN.get(item.module.__name__.rpartition(".")[2], {})
        reason = reasons.get(f"{item.cls.__name__}.{item.name}")
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
