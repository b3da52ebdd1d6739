"""What a record says of where its figures come from: command, commit, versions, memory."""

import pathlib
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("sb3-diffrl", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "numpy", "torch"),
    *("mujoco", "metaworld"),
)


def command() -> str:
    """:return: the command line of this process, its program without its folder"""
    program, *arguments = sys.orig_argv
    if arguments and pathlib.Path(arguments[0]).is_absolute():  # a script such as sb3-diffrl
        program, *arguments = arguments
    return shlex.join([pathlib.Path(program).name, *arguments])


def versions() -> dict[str, str]:
    """:return: versions of Python and of the packages that matter, where they are installed"""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """:return: of this checkout, ``-dirty`` with changed files; empty outside one"""
    this = pathlib.Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=this.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", this.name)  # else the repository is somebody else's
        return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return ""


def peak_rss_mb() -> float:
    """:return: largest resident memory of this process so far, MB"""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that this one was forked from
        entries = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in entries:
            return int(entries["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
