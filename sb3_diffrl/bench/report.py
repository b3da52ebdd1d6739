"""``sb3-diffrl bench report``: tables and figures from files of records."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sb3_diffrl.bench import tables, training_tables
from sb3_diffrl.bench.cells import Lines, plural
from sb3_diffrl.bench.methods import LABELS
from sb3_diffrl.bench.records import Key, Record, read_records
from sb3_diffrl.bench.rows import THRESHOLD, rows_of, write_rows
from sb3_diffrl.bench.statistics import natural
from sb3_diffrl.bench.study import Study, check
from sb3_diffrl.files import write_text

DEFAULTS = tuple(Path("benchmarks/results", f"{name}.jsonl") for name in ("avoiding", "metaworld"))

Plan = Callable[[Path], Sequence[Key] | None]


def report(
    parser: argparse.ArgumentParser,
    labels: Mapping[str, str] = LABELS,
    plan: Plan = lambda path: None,
) -> None:
    """Make tables and figures from records of runs."""
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="FILE.jsonl",
        help=f"default: of {' and '.join(map(str, DEFAULTS))} those that exist",
    )
    parser.add_argument("--output", type=Path, help="folder; default: that of each file")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="success rate of 'steps to'"
    )
    parser.set_defaults(run=run_report, labels=labels, plan=plan)


def run_report(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`report`
    :raises ValueError: where there is nothing to report on, or a file holds other things
    """
    paths = args.records or [path for path in DEFAULTS if path.exists()]
    if not paths:
        raise ValueError(
            f"no records: neither {' nor '.join(map(str, DEFAULTS))} is here. Name a file, or "
            "make one by sb3-diffrl bench."
        )
    outputs = [(args.output or path.parent) / path.stem for path in paths]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--output {args.output}: two of the files have the same name")
    for path, output in zip(paths, outputs, strict=True):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            records = read_records(path)
            write_report(records, output, path.stem, args.labels, args.threshold, args.plan(path))
        except ValueError as error:
            where = "" if str(path) in str(error) else f"{path}: "
            raise ValueError(f"{where}{error}") from error
        print(f"Wrote {output}.md, its figures and {output}.csv from {plural(len(records), 'run')}")


def write_report(
    records: Sequence[Record],
    output: Path,
    title: str,
    labels: Mapping[str, str] = LABELS,
    threshold: float = THRESHOLD,
    planned: Sequence[Key] | None = None,
) -> str:
    """
    Write all that belongs to some records: ``<output>.csv`` with one line per run and evaluation
    mode (:class:`~sb3_diffrl.bench.rows.ResultRow`), ``<output>.md``, and the figures that it
    shows, ``<output>_<name>.png``. The same records give the same text.

    :param records: of the runs, each key once, in any order
    :param output: path without a suffix
    :param title: heading
    :param labels: of methods, by name, in the order of the tables and of the colours; methods
        without a label follow by their names
    :param threshold: success rate of "steps to"; that of the CSV is always 0.60
    :param planned: keys of the runs that there should be, to say how many are missing
    :return: the Markdown
    :raises ValueError: where records are missing, given twice, or without an evaluation
    """
    from sb3_diffrl.bench.figures import draw

    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold in (0, 1], got {threshold}")
    check(records)
    order = sorted(records, key=lambda r: (natural(r.task, r.method, r.perturbation), r.key))
    study = Study(order, labels, threshold)
    lines = [line for part in sections(study, planned) for line in part]
    figures = draw(study, output)
    for path, caption in figures.items():
        lines += ["", f"![{caption}]({path.name})", "", caption]
    text = "\n".join([f"# {title}", "", *lines]) + "\n"
    rows = [row for record in order for row in rows_of(record)]
    write_rows(output.with_name(f"{output.name}.csv"), rows)
    write_text(output.with_name(f"{output.name}.md"), text)
    return text


def sections(study: Study, planned: Sequence[Key] | None) -> Iterator[Lines]:
    """
    :param study: what to report on
    :param planned: keys of the runs that there should be
    :return: the parts of the report, in order
    """
    yield tables.introduction(study)
    yield tables.paper(study)
    yield tables.tasks(study)
    yield tables.aggregated(study)
    yield tables.comparisons(study)
    yield tables.ablations(study)
    yield training_tables.speed(study)
    yield training_tables.forgetting(study)
    yield training_tables.progress(study, planned)
    yield training_tables.provenance(study)
