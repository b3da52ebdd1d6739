"""The package's layers: who may import whom, and that importing it stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "sb3_diffrl"
ROOT = Path(__file__).parents[1] / PACKAGE

# Each imports from those in lines before it, and from its own folder; the edges from all and from
# one another.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("files",),
    ("diffusion",),
    ("schedules",),
    ("demonstrations",),
    ("wrappers",),
    ("envs",),
    ("normalization",),
    ("encoders",),
    ("random_state",),
    ("precision",),
    ("buffers",),
    ("losses",),
    ("action_scale",),
    ("actor",),
    ("policies",),
    ("batches",),
    ("fitting",),
    ("env_statistics",),
    ("pretraining",),
    ("imitation_buffer",),
    ("imitation",),
    ("imitating_ppo",),
    ("diffusion_ppo",),
    ("chunked_policy",),
    ("evaluation",),
    ("multimodality",),
    ("callbacks",),
)
EDGES = {"__main__", "bench", "cli", "hub", "importing", "plots", "sharing", "zoo"}
# Methods that lead to an edge, imported when they are called.
HOOKS = {"diffusion_ppo": {"hub"}}
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

# What else a layer may import when it is loaded. Readers and simulators are imported by functions.
MAY_IMPORT = {
    "action_scale": {"numpy", "gymnasium"},
    "diffusion": {"torch"},
    "schedules": set(),
    "files": set(),
    "demonstrations": {"numpy", "gymnasium"},
    "envs": {"numpy", "gymnasium"},
    "random_state": {"numpy", "torch"},
    "encoders": {"torch", "gymnasium", "stable_baselines3"},
    "losses": {"torch"},
    "precision": {"torch"},
    "wrappers": {"numpy", "gymnasium", "stable_baselines3"},
}
NEVER_INSIDE = {"diffusion", "schedules", "losses"}  # no late imports either
OTHERS = {"benchmarks", "examples", "tests"}  # what stands on the package

MODULES = sorted(ROOT.rglob("*.py"))


def dotted(file: Path) -> list[str]:
    parts = [PACKAGE, *file.relative_to(ROOT).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(file: Path, tree: ast.AST) -> list[tuple[str, int]]:
    """Full names of the modules that ``tree`` imports, with the lines."""
    package = dotted(file) if file.name == "__init__.py" else dotted(file)[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                path = ROOT.parent.joinpath(*source.split("."), alias.name)
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                found.append((f"{source}.{alias.name}" if is_module else source, node.lineno))
    return found


def module_level(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is loaded; not what serves type checkers alone."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            test = ast.unparse(node.test)
            return None if test.endswith("TYPE_CHECKING") else self.generic_visit(node)

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def layer_of(module: str) -> str | None:
    """The part of the package that a module belongs to; None for the package's own namespace."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def wrong_arrows(file: Path, source: str) -> list[str]:
    """Sentences about the imports of ``source`` that run the wrong way."""
    me = layer_of(".".join(dotted(file)))
    if me is None or me in EDGES:
        return []
    complaints = []
    tree = ast.parse(source)
    at_once = imported(file, module_level(ast.parse(source)))
    for name, line in imported(file, tree):
        if not (name == PACKAGE or name.startswith(PACKAGE + ".")):
            continue
        other = layer_of(name)
        if other is None:
            complaints.append(f"{file.name}:{line} imports {PACKAGE} itself, which imports all")
        elif other in EDGES:
            if other in HOOKS.get(me, ()) and (name, line) not in at_once:
                continue
            complaints.append(f"{file.name}:{line} imports the edge {other}")
        elif other != me and LEVEL[other] >= LEVEL[me]:
            complaints.append(f"{file.name}:{line}: {me} must not import {other}")
    return complaints


def strangers(file: Path, source: str) -> list[str]:
    """Sentences about other packages that the layer must do without."""
    me = layer_of(".".join(dotted(file)))
    tree = ast.parse(source)
    complaints = [
        f"{file.name}:{line} imports {name}"
        for name, line in imported(file, tree)
        if name.split(".")[0] in OTHERS
    ]
    if me not in MAY_IMPORT:
        return complaints
    allowed = MAY_IMPORT[me] | {PACKAGE} | sys.stdlib_module_names
    for name, line in imported(file, tree if me in NEVER_INSIDE else module_level(tree)):
        if name.split(".")[0] not in allowed:
            complaints.append(f"{file.name}:{line}: {me} must not import {name}")
    return complaints


def test_every_part_has_its_place() -> None:
    parts = {layer_of(".".join(dotted(file))) for file in MODULES} - {None}
    unknown = parts - LEVEL.keys() - EDGES
    assert not unknown, f"say in LAYERS or EDGES where {sorted(map(str, unknown))} belong"
    assert not LEVEL.keys() - parts, "LAYERS names what does not exist"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: ".".join(dotted(file)[1:]) or PACKAGE)
def test_imports_run_one_way(file: Path) -> None:
    source = file.read_text()
    assert not wrong_arrows(file, source) + strangers(file, source)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses.py", "from sb3_diffrl.policies import DiffusionActorCriticPolicy"),
        ("losses.py", "from .policies import DiffusionActorCriticPolicy"),
        ("policies.py", "from sb3_diffrl import DiffusionPPO"),
        ("policies.py", "from sb3_diffrl import callbacks"),
        ("policies.py", "def f():\n    import sb3_diffrl.diffusion_ppo"),
        ("diffusion/chain.py", "from ..schedules import Constant"),
        ("evaluation.py", "from sb3_diffrl.bench.runs import Run"),
        ("evaluation.py", "def f():\n    from sb3_diffrl import hub"),
        ("diffusion_ppo.py", "from sb3_diffrl import hub"),
        ("diffusion_ppo.py", "def f():\n    from sb3_diffrl import plots"),
        ("schedules.py", "import numpy"),
        ("diffusion/chain.py", "def f():\n    import stable_baselines3.common"),
        ("envs/avoiding.py", "from stable_baselines3 import PPO"),
        ("demonstrations/dataset.py", "import h5py"),
        ("callbacks.py", "from tests.envs import TargetEnv"),
    ],
)
def test_a_wrong_arrow_is_noticed(module: str, line: str) -> None:
    assert wrong_arrows(ROOT / module, line) + strangers(ROOT / module, line)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("policies.py", "from sb3_diffrl.diffusion import Denoiser"),
        ("policies.py", "from sb3_diffrl import diffusion"),
        ("diffusion/chain.py", "from .denoisers import Denoiser"),
        ("bench/runs.py", "from sb3_diffrl import DiffusionPPO, plots"),
        ("diffusion_ppo.py", "def f():\n    from sb3_diffrl import hub"),
        ("demonstrations/dataset.py", "def f():\n    import h5py"),
    ],
)
def test_a_right_arrow_is_none(module: str, line: str) -> None:
    assert not wrong_arrows(ROOT / module, line) + strangers(ROOT / module, line)


def test_importing_the_package_is_light() -> None:
    """No simulator, no Hub client, no plots; no more than SB3 itself beyond our own modules."""
    heavy = [
        *("matplotlib", "huggingface_hub", "huggingface_sb3", "rl_zoo3", "sb3_contrib", "optuna"),
        *("metaworld", "mujoco", "robosuite", "gymnasium_robotics", "pygame", "pybullet"),
        *(
            "safetensors",
            "ray",
            "rliable",
            "sklearn",
            "PIL",
            "h5py",
            "zarr",
            "pyarrow",
            "av",
            "datasets",
            "lerobot",
            "minari",
            "pandas",
            "sklearn",
            "yaml",
        ),
    ]
    program = (
        "import sys, stable_baselines3\n"
        "before = set(sys.modules)\n"
        f"import {PACKAGE}\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = set(result.stdout.split())
    assert PACKAGE in loaded
    assert not loaded & set(heavy)
