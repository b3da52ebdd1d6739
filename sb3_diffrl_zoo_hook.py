"""
The start-up hook: puts ``diffppo`` into the RL Zoo when the Zoo is imported, and not before.

Every start of the interpreter runs it, which is why it stands beside the package (importing that
imports PyTorch) and imports nothing but ``sys``.
"""

import sys

TYPE_CHECKING = False  # what type checkers take for true, without an import
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# Modules of the Zoo that are extended once they are loaded, and scripts of the Zoo that need
# something mended before they start.
MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")
SCRIPTS = (
    "rl_zoo3.benchmark",
    "rl_zoo3.plots",
    "rl_zoo3.push_to_hub",
    "rl_zoo3.record_training",
)


class ZooFinder:
    """Finds nothing by itself: has :mod:`sb3_diffrl.zoo` called when the Zoo's modules load."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        """
        :param name: full name of a module
        :param path: where its package looks
        :param target: module that is loaded again, if any
        :return: the spec that the other finders give, None for modules other than the Zoo's
        """
        if name in SCRIPTS:
            call("mend", name)
        if name not in MODULES:
            return None
        others = (finder for finder in sys.meta_path if not is_ours(finder))
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                load(module)
                call("extend", module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # meant
        return spec


def call(name: str, argument: "Any") -> None:
    """
    Call a function of :mod:`sb3_diffrl.zoo`; the Zoo goes on without ``diffppo`` where it fails.

    :param name: of the function
    :param argument: its argument
    """
    try:
        from sb3_diffrl import zoo

        getattr(zoo, name)(argument)
    except Exception as error:
        import warnings

        warnings.warn(f"sb3-diffrl: no diffppo in the RL Zoo: {error!r}", stacklevel=2)


def is_ours(finder: "Any") -> bool:
    """
    :param finder: entry of ``sys.meta_path``
    :return: whether it is the hook, of this copy of the module or another
    """
    return type(finder).__name__ == ZooFinder.__name__


def install() -> None:
    """Start looking out for the Zoo, once."""
    if not any(is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ZooFinder())
