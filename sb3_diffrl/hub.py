"""
Models shared as ``config.json`` and safetensors files, on the Hugging Face Hub or in a folder.

Nothing is unpickled: see :mod:`sb3_diffrl.sharing`. The methods of
:class:`~sb3_diffrl.DiffusionPPO` of the same names lead here.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecNormalize,
    unwrap_vec_normalize,
)

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.evaluation import Evaluation, as_vec_env, evaluate
from sb3_diffrl.plots import Curve
from sb3_diffrl.sharing.card import CARD, CURVE, REPLAY, UNKNOWN, Showcase, write_card
from sb3_diffrl.sharing.checks import MAX_CONFIG_BYTES, at, parse_json
from sb3_diffrl.sharing.model import (
    CONFIG,
    FILES,
    VEC_NORMALIZE,
    Description,
    Model,
    build_model,
    decode_config,
    encode_model,
)
from sb3_diffrl.sharing.tensors import read_tensors
from sb3_diffrl.sharing.vec_normalize import restore_vec_normalize
from sb3_diffrl.wrappers import rewrap
from sb3_diffrl.wrappers.decisions import mending_spaces
from sb3_diffrl.wrappers.records import recorded_wrappers

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

Path_ = str | os.PathLike[str]

MAX_FILE_BYTES = 2**36
# What may lie beside the model and is never opened.
HARMLESS = (".md", ".txt", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".mp4", ".csv", ".yml", ".yaml")
HARMLESS_NAMES = (".gitattributes", ".gitignore", "LICENSE")

log = logging.getLogger(__name__)

# -- saving ------------------------------------------------------------------------------------


def save_pretrained(
    model: DiffusionPPO,
    directory: Path_,
    *,
    include_optimizer: bool = False,
    env_id: str | None = None,
    eval_env: gym.Env | VectorEnv | VecEnv | None = None,
    n_eval_episodes: int = 100,
    evaluations: Mapping[str, Evaluation] | None = None,
    curve: Curve | None = None,
    curve_episodes: int | None = None,
    license: str | None = None,
    load_arguments: str | None = None,
) -> None:
    """
    Write a model into a folder, to be read by :func:`from_pretrained`.

    Nothing is left half-written: the files are made elsewhere and moved, ``config.json`` last.

    :param model: what to save
    :param directory: made if need be; files of a model saved there before are replaced
    :param include_optimizer: whether to keep what training needs to go on: the state of the
        optimizers and, where the model has a seed, of the random generators
    :param env_id: name of the task, for the card; by default what the model's env says
    :param eval_env: env to evaluate in and, where its render mode is ``"rgb_array"``, to film; not
        the one of training
    :param n_eval_episodes: episodes of the evaluation
    :param evaluations: results for the card's table by what was evaluated, instead of evaluating
    :param curve: environment steps and success rates, as ``SuccessCallback.curve``, or returns
    :param curve_episodes: episodes of each success rate, for its interval; None for returns
    :param license: of the model, such as ``"mit"``
    :param load_arguments: arguments of :func:`from_pretrained` in the program that the card shows;
        by default the folder
    :raises ValueError: where the model has a part that cannot be shared safely, naming it
    """
    from safetensors.torch import save

    directory = Path(directory)
    config, tensors = encode_model(model, include_optimizer)
    env = None if eval_env is None else _normalized_as_trained(model, as_vec_env(eval_env))
    if evaluations is None:
        evaluations = {}
        if env is not None:
            evaluations = {"evaluation": evaluate(model, env, n_eval_episodes)}
    spec = _spec(env) or _spec(model.get_env())
    env_kwargs = {} if spec is None or env_id not in (None, spec.id) else spec.kwargs
    showcase = Showcase(
        env_id or (UNKNOWN if spec is None else str(spec.id)),
        *(env_kwargs, evaluations, curve, curve_episodes, env, license),
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as made:
        for name, named in tensors.items():
            (Path(made) / name).write_bytes(save(named, metadata={"format": "pt"}))
        content = json.dumps(config, indent=2, allow_nan=False)
        (Path(made) / CONFIG).write_text(content + "\n", encoding="utf-8")
        loads = load_arguments or json.dumps(directory.as_posix())
        write_card(Path(made), model, showcase, loads)
        directory.mkdir(exist_ok=True)
        # Without its config.json a folder is no model, so that no mixture of two is ever loaded.
        for name in (CONFIG, *FILES, CURVE, REPLAY):
            (directory / name).unlink(missing_ok=True)
        names = sorted(path.name for path in Path(made).iterdir())
        for name in sorted(names, key=lambda name: name == CONFIG):
            os.replace(Path(made) / name, directory / name)


def push_to_hub(
    model: DiffusionPPO,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    commit_message: str = "Push DiffusionPPO",
    **kwargs: Any,
) -> CommitInfo:
    """
    Upload a model to the Hub in one commit; the repository is made if need be.

    :param model: what to share
    :param repo_id: ``"name"`` or ``"namespace/name"``
    :param token: by default that of the environment or of the command line's login
    :param private: whether a repository made by this call is private; True also refuses one that is
        there and public
    :param revision: branch to commit to, made if need be; by default ``main``
    :param subfolder: folder of the repository; by default its root
    :param commit_message: of the commit
    :param kwargs: see :func:`save_pretrained`
    :return: the commit
    :raises ValueError: where the model has a part that cannot be shared safely, naming it, or with
        ``private=True`` the repository is public; nothing is uploaded then
    """
    from huggingface_hub import HfApi

    prefix = _prefix(subfolder)
    api = HfApi(token=token, library_name="sb3-diffrl")
    with tempfile.TemporaryDirectory() as made:
        # Written before anything is sent: what cannot be shared fails here.
        folder = Path(made) / "model"
        loads = _load_arguments(repo_id, prefix)
        save_pretrained(model, folder, **{"load_arguments": loads, **kwargs})
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(full_id).private:
            raise ValueError(
                f"private=True, but the repository {full_id} is there and public, expected a "
                "private one: make it private in its settings, choose another repo_id, or leave "
                "private out to publish the model. Nothing was uploaded."
            )
        if full_id != repo_id:
            card = (folder / CARD).read_text(encoding="utf-8")
            card = card.replace(loads, _load_arguments(full_id, prefix))
            (folder / CARD).write_text(card, encoding="utf-8")
        if revision is not None:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=full_id,
            folder_path=folder,
            path_in_repo=prefix.rstrip("/") or None,
            revision=revision,
            commit_message=commit_message,
            delete_patterns=[*FILES, CURVE, REPLAY],
        )


def _load_arguments(repo_id: str, prefix: str) -> str:
    folder = prefix.rstrip("/")
    return json.dumps(repo_id) + (f", subfolder={json.dumps(folder)}" if folder else "")


def _spec(env: VecEnv | None) -> Any:
    """The id and arguments that gymnasium made the env from, where it says so."""
    try:
        return None if env is None else env.get_attr("spec")[0]
    except AttributeError:
        return None


def _normalized_as_trained(model: DiffusionPPO, env: VecEnv) -> VecEnv:
    """Wrap an env that does not normalise as the model's does, its statistics standing still."""
    trained = model.get_vec_normalize_env()
    if trained is None or unwrap_vec_normalize(env) is not None:
        return env
    keys = trained.norm_obs_keys if trained.norm_obs else None
    wrapped = VecNormalize(
        *(env, False, trained.norm_obs, False, trained.clip_obs),
        epsilon=trained.epsilon,
        norm_obs_keys=keys,
    )
    if trained.norm_obs:
        wrapped.obs_rms = trained.obs_rms
    return wrapped


# -- loading -----------------------------------------------------------------------------------


def from_pretrained(
    cls: type[Model],
    name: Path_,
    env: gym.Env | VecEnv | str | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path_ | None = None,
    local_files_only: bool = False,
    device: th.device | str = "auto",
    **kwargs: Any,
) -> Model:
    """
    Load a model from the Hub or from a folder. Nothing is unpickled, and nothing is built before
    every file has been checked.

    Where the Hub cannot be reached, or under ``HF_HUB_OFFLINE=1``, what was downloaded before is
    used.

    :param cls: :class:`~sb3_diffrl.DiffusionPPO` or a subclass
    :param name: a folder, or ``"namespace/name"`` on the Hub
    :param env: to train in; only needed for that and for models trained under ``VecNormalize``,
        whose statistics it gets: an env that is no ``VecNormalize`` is wrapped in one, to be found
        by ``model.get_env()``. A gymnasium env or id without action chunks and observation
        histories also gets those that the model was trained with
    :param revision: branch, tag or commit on the Hub; by default ``main``
    :param subfolder: folder that holds the model
    :param token: by default that of the environment or of the command line's login
    :param cache_dir: where downloads are kept; by default the Hub's usual place
    :param local_files_only: use what was downloaded before and nothing else
    :param device: of the policy
    :param kwargs: attributes to change, as in ``load``, such as ``beta`` or ``learning_rate``
    :return: the model
    :raises ValueError: for a file that is not what it must be, saying what was wrong
    :raises FileNotFoundError: where there is no such model
    """
    prefix = _prefix(subfolder)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub.errors import HFValidationError

        try:
            folder = _download(str(name), prefix, revision, token, cache_dir, local_files_only)
        except HFValidationError as error:
            raise ValueError(
                f"{str(name)!r} is neither a folder nor 'namespace/name' on the Hub: {error}"
            ) from error
    folder = folder / prefix
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    description, readers = read_folder(folder)
    tensors = {}
    vec_env = None if env is None else _training_env(env, description.attributes["env_wrappers"])
    # Nothing of the model is built before this line.
    for file, read in readers.items():
        tensors[file] = read()
    if description.vec_normalize is not None:
        if vec_env is None:
            log.warning(
                "%s was trained under VecNormalize: pass env= and act on the observations of "
                "model.get_env(), which are normalised as they were in training.",
                name,
            )
        elif unwrap_vec_normalize(vec_env) not in (None, vec_env):
            raise ValueError(
                "env: VecNormalize must be its outermost wrapper, or none of them; "
                "from_pretrained adds it."
            )
        else:
            vec_env = restore_vec_normalize(
                vec_env,
                description.vec_normalize,
                description.observation_space,
                tensors[VEC_NORMALIZE],
            )
    if vec_env is not None:
        vec_env = cls._wrap_env(vec_env)
        with mending_spaces():
            check_for_correct_spaces(
                vec_env, description.observation_space, description.action_space
            )
    return build_model(cls, description, tensors, vec_env, device, kwargs)


def read_folder(folder: Path) -> tuple[Description, dict[str, Callable[[], dict[str, th.Tensor]]]]:
    """
    Check all files of a folder without building anything.

    :param folder: that may come from anyone
    :return: the description of the model, and by file what reads its tensors
    :raises ValueError: for a file that is not what it must be, saying what was wrong
    :raises FileNotFoundError: where there is no ``config.json``
    """
    check_files({path.name: path.stat().st_size for path in folder.iterdir() if not path.is_dir()})
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}: it is no model that save_pretrained or push_to_hub wrote."
        )
    with at(CONFIG):
        with (folder / CONFIG).open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        description = decode_config(parse_json(content))
        expected = description.tensors()
    readers = {}
    for name in FILES[1:]:
        path = folder / name
        if name in expected and not path.is_file():
            raise ValueError(f"{name} is missing, which {CONFIG} speaks of.")
        if name not in expected and path.exists():
            raise ValueError(f"{name} is not expected: {CONFIG} does not speak of it.")
        if name in expected:
            with at(name):
                readers[name] = read_tensors(path, expected[name])
    return description, readers


def check_files(sizes: Mapping[str, int]) -> None:
    """
    :param sizes: bytes of the files of a model's folder, by name
    :raises ValueError: for a name that leads elsewhere, a file that does not belong there, such as
        a pickle, and a file too large
    """
    for name, size in sizes.items():
        if PurePosixPath(name).name != name or "\\" in name or name == "..":
            raise ValueError(f"The file name {name!r} leads out of the model's folder.")
        known = name in (*FILES, *HARMLESS_NAMES) or PurePosixPath(name).suffix in HARMLESS
        if not known:
            raise ValueError(
                f"The file {name!r} does not belong to a model of this format, which consists of "
                f"{', '.join(FILES)}, a card and pictures. Pickles and programs are refused: "
                "remove it, or keep it in a folder of its own."
            )
        limit = MAX_CONFIG_BYTES if name == CONFIG else MAX_FILE_BYTES
        if size > limit:
            raise ValueError(f"The file {name!r} has {size} bytes, at most {limit} are allowed.")


def _prefix(subfolder: str | None) -> str:
    """The folder as the beginning of a path, ``""`` or ``"a/b/"``."""
    if not subfolder:
        return ""
    parts = subfolder.rstrip("/").split("/")
    if "\\" in subfolder or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"subfolder={subfolder!r}: expected a folder inside of the model's, such as 'seed_1'."
        )
    return "/".join(parts) + "/"


def _training_env(env: gym.Env | VecEnv | str, env_wrappers: Sequence[Mapping[str, Any]]) -> VecEnv:
    if isinstance(env, VecEnv):
        return env
    made = gym.make(env) if isinstance(env, str) else env
    monitored = made if is_wrapped(made, Monitor) else Monitor(made)
    wrapped = monitored if recorded_wrappers(made) else rewrap(monitored, env_wrappers)
    return DummyVecEnv([lambda: wrapped])


def _download(
    repo_id: str,
    prefix: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: Path_ | None,
    local_files_only: bool,
) -> Path:
    """
    Bring a model's files into the Hub's cache, once their names and sizes have been checked.

    :return: the folder of the repository
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    where: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "allow_patterns": [glob.escape(prefix + name) for name in FILES],
        "library_name": "sb3-diffrl",
    }
    if local_files_only:
        return Path(snapshot_download(repo_id, local_files_only=True, **where))
    try:
        check_files(_remote_files(HfApi(token=token), repo_id, prefix, revision))
    except (ValueError, RevisionNotFoundError):
        raise
    except Exception:
        # Not reached, or not let in: what was downloaded before will do, as in other libraries.
        try:
            return Path(snapshot_download(repo_id, local_files_only=True, **where))
        except LocalEntryNotFoundError:
            pass
        raise
    return Path(snapshot_download(repo_id, token=token, **where))


def _remote_files(api: Any, repo_id: str, prefix: str, revision: str | None) -> dict[str, int]:
    """Bytes of the files of one folder of a repository, by name."""
    # Asked first, for where the Hub is not reached the listing would be asked for again and again.
    commit = api.repo_info(repo_id, revision=revision).sha
    listing: Iterable[Any] = api.list_repo_tree(
        repo_id, prefix.rstrip("/") or None, revision=commit
    )
    files = [entry for entry in listing if hasattr(entry, "size")]
    return {entry.path.removeprefix(prefix): entry.size for entry in files}
