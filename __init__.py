"""statezoo: a model zoo of state-space and recurrent sequence models for people who work in a domain.

Everything here is lazy (PEP 562): importing the package imports neither torch nor any model.
"""

__version__ = "0.1.0"

_LAZY = {
    "list_models": "zoo.api",
    "create_model": "zoo.api",
    "create_dataset": "zoo.api",
    "load": "zoo.api",
    "open_run": "zoo.api",
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"statezoo.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'statezoo' has no attribute '{name}'")


def __dir__():
    return sorted([*globals(), *_LAZY])
