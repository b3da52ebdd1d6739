"""
Repairs of stock packages that the Zoo's commands stumble on.

Each applies only while the stock thing is broken, and says so where it steps in.
"""

import atexit
import contextlib
import functools
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def say(text: str) -> None:
    """:param text: what was mended, for the standard error"""
    print(f"sb3-diffrl: {text}", file=sys.stderr)


def mend_hub_client() -> None:
    """
    ``rl_zoo3.push_to_hub`` imports a function that huggingface_sb3 has renamed, and
    ``rl_zoo3.load_from_hub`` waits for an exception that huggingface_hub no longer raises.
    """
    import huggingface_sb3
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    # (The package's attribute of that name is a function.)
    client: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    renamed = getattr(client, "_generate_metadata", None)
    if not hasattr(client, "generate_metadata") and renamed is not None:

        @functools.wraps(renamed)
        def generate_metadata(*args: Any, **kwargs: Any) -> Any:
            say("huggingface_sb3 has renamed generate_metadata, which the Zoo calls")
            metadata = renamed(*args, **kwargs)
            return metadata if isinstance(metadata, dict) else metadata.to_dict()

        client.generate_metadata = generate_metadata
    if not issubclass(EntryNotFoundError, HTTPError):
        download = huggingface_sb3.load_from_hub

        @functools.wraps(download)
        def load_from_hub(*args: Any, **kwargs: Any) -> str:
            try:
                return download(*args, **kwargs)
            except EntryNotFoundError as error:
                say("a file that the model may lack is missing on the Hub; the Zoo is told so")
                raise HTTPError(str(error)) from error

        huggingface_sb3.load_from_hub = load_from_hub


def named_without_slashes(
    get_trained_models: Callable[[str], dict[str, tuple[str, str]]],
) -> Callable[[str], dict[str, tuple[str, str]]]:
    """``rl_zoo3.benchmark`` looks for ``logs/<algo>/sb3_diffrl/Avoiding-v0_1``."""
    from huggingface_sb3 import EnvironmentName

    @functools.wraps(get_trained_models)
    def wrapper(log_folder: str) -> dict[str, tuple[str, str]]:
        models = get_trained_models(log_folder)
        return {name: (algo, EnvironmentName(env)) for name, (algo, env) in models.items()}

    return wrapper


def mend(script: str) -> None:
    """
    Mend what a script of the Zoo would stumble on: other scripts that it calls by names which exist
    only in a checkout of the Zoo, an ``ffmpeg`` that is not on the path, an ``rliable`` that pandas
    3 breaks.

    :param script: full name of the module, about to be run
    """
    calls = ("rl_zoo3.benchmark", "rl_zoo3.record_training")
    if script in calls and not hasattr(subprocess.call, "__wrapped__"):
        subprocess.call = _calls_of_the_zoo(subprocess.call)
    if script in ("rl_zoo3.push_to_hub", "rl_zoo3.record_training"):
        _find_ffmpeg()
    if script == "rl_zoo3.plots":
        _check_rliable()


def _check_rliable() -> None:
    """The Zoo's plots do without it where it is missing, but not where its import fails."""
    try:
        importlib.import_module("rliable.library")
    except ImportError:
        pass
    except Exception as error:
        say(f"rliable cannot be imported ({error}); the Zoo plots without it. pandas<3 may help")
        sys.modules["rliable"] = None  # type: ignore[assignment]  # an ImportError from now on


def _calls_of_the_zoo(call: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(call)
    def wrapper(command: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(command, list) and command[:1] == ["python"]:
            if command[1] == "enjoy.py" and not os.path.exists("enjoy.py"):
                say("the Zoo calls enjoy.py, which only its checkout has; -m rl_zoo3.enjoy it is")
                command = ["python", "-m", "rl_zoo3.enjoy", *command[2:]]
            command = [sys.executable, *(getattr(word, "gym_id", word) for word in command[1:])]
        return call(command, *args, **kwargs)

    return wrapper


def _find_ffmpeg() -> None:
    if shutil.which("ffmpeg") is not None:
        return
    with contextlib.suppress(ImportError, RuntimeError, OSError):
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.symlink(program, os.path.join(folder, "ffmpeg"))
        os.environ["PATH"] += os.pathsep + folder
        say(f"no ffmpeg on the PATH; the Zoo uses {program}")
