"""What users read and set by attribute, where a property is not enough."""

from __future__ import annotations

import inspect
from numbers import Real
from typing import Any, NoReturn

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.arguments import cure_of, parameters_of

_CONSTRUCTOR = (
    "Give it to the constructor. For a running optimizer, from_keras(optimizer, ...) of its class "
    "makes a new one with other arguments and all of its state."
)


class Attribute:
    """A class attribute that stands for an argument of an optimizer's own.

    A setting is read from its optimizer variable. All else lies in the instance.

    Args:
        name: the attribute's name.
        strict: whether an argument that is not a setting can be set only before the build.
    """

    def __init__(self, name: str, strict: bool = True) -> None:
        self.name, self._strict = name, strict

    def __get__(self, optimizer: Any, cls: Any = None) -> Any:
        """Return a setting as it is now: in an update, as that update computes with it."""
        if optimizer is None:
            return self
        kd = optimizer.__dict__.get("_kd")
        if kd is not None and self.name in kd.settings:
            return kd.update.setting(kd.settings[self.name])
        if self.name not in optimizer.__dict__:
            what = f"{type(optimizer).__name__!r} object has no attribute {self.name!r}"
            raise AttributeError(what)
        return optimizer.__dict__[self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        """Set it; it counts from the next update on."""
        kd = optimizer.__dict__.get("_kd")
        made = kd is not None and kd.clock is not None  # else the constructor runs
        if made and (self._strict or self.name in kd.settings):
            kd.set_own(self.name, value)
        else:
            optimizer.__dict__[self.name] = value


class ReadOnly(dict[Any, Any]):
    """A copy for a user to read. A change of it would not reach the optimizer, so it is refused."""

    def __init__(self, name: str, values: Any) -> None:
        super().__init__(values)
        self._name = name

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        what = Seen(f"a change of optimizer.{self._name}")
        refuse(
            self._name, what, "can be read only: it is what the optimizer was given", _CONSTRUCTOR
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> Any:
        """Copies are plain dicts."""
        return dict, (dict(self),)


def check_set(optimizer: Any, name: str, value: Any) -> None:
    """Refuse to set what would change nothing, on a finished optimizer of this package."""
    cls = type(optimizer)
    if cls.__module__.split(".")[0] != __name__.split(".")[0]:
        return  # a user's class may use any name
    in_class, attributes = inspect.getattr_static(cls, name, None), vars(optimizer)
    if isinstance(in_class, property) and in_class.fset is None:
        refuse(name, value, "can be read only", _CONSTRUCTOR)
    if name in ("use_ema", "gradient_accumulation_steps"):
        if optimizer.built and value != attributes[name]:
            rule = "can be set only before the optimizer is built: it needs optimizer variables"
            refuse(name, value, rule, f"Make a new optimizer with {name}={value!r}.")
    elif in_class is None and name not in attributes:
        if name in parameters_of(cls):
            refuse(name, value, "is a constructor argument, and not an attribute", _CONSTRUCTOR)
        # Only a number may be a misspelled argument: Keras' own classes set lists at build.
        cure = cure_of(cls, name, near=isinstance(value, Real))
        cure = "Write `learning_rate`." if name == "lr" else cure
        if cure is not None:
            refuse(name, value, "is not an attribute of this optimizer", cure, AttributeError)
