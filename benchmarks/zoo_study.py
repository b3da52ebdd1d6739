"""
What a tuning study found: its trials as CSV, its history and the hyperparameters' importance as PNG
and HTML, and the best trial as an entry for hyperparams/diffppo.yml.

    python benchmarks/zoo_study.py --storage logs/study.log --study-name avoiding
"""

import argparse
from pathlib import Path

import optuna
import yaml

from sb3_diffrl.files import write_text
from sb3_diffrl.plots import save_figure
from sb3_diffrl.zoo import convert_params, open_storage, undotted


def main() -> None:
    """Write the figures and print the best trial."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", required=True, help="as rl_zoo3.train's")
    parser.add_argument("--study-name", required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder")
    args = parser.parse_args()

    storage = args.storage
    if storage.endswith(".log"):  # as the Zoo does
        backend = optuna.storages.journal.JournalFileBackend(storage)
        storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(
        study_name=args.study_name, storage=open_storage(optuna.storages.get_storage, storage)
    )
    best = study.best_trial
    print(f"# {len(study.trials)} trials, best: number {best.number}, value {best.value}")
    entry = undotted(convert_params(best.params))
    print(yaml.safe_dump(entry, sort_keys=False))
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"study_{args.study_name}"
    trials = study.trials_dataframe(("number", "state", "value", "duration", "params"))
    write_text(stem.with_suffix(".csv"), trials.to_csv(index=False))
    save_figures(study, stem)


def save_figures(study: optuna.Study, stem: Path) -> list[Path]:
    """
    :param study: with at least two completed trials
    :param stem: path without its ending
    :return: the files: PNG, and HTML where plotly is installed
    """
    import optuna.visualization as interactive
    from matplotlib.figure import Figure
    from optuna.visualization import matplotlib as static

    files = []
    for name in ("optimization_history", "param_importances"):
        axes = getattr(static, f"plot_{name}")(study)
        figure = axes.figure
        assert isinstance(figure, Figure)
        path = stem.with_name(f"{stem.name}_{name}.png")
        save_figure(figure, path, bbox_inches="tight")
        files.append(path)
        if interactive.is_available():
            path = path.with_suffix(".html")
            html = getattr(interactive, f"plot_{name}")(study).to_html(include_plotlyjs="cdn")
            write_text(path, html)
            files.append(path)
    return files


if __name__ == "__main__":
    main()
