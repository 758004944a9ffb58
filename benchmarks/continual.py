"""The table of ways not to forget: each method on two sets of images, cut into tasks in three ways.

Both sets are split into five tasks of two classes, in an order drawn by the seed. A seed gives each method the same weights,
order and batches. 5 seeds, with --quick 2, in two processes of one thread. The pages with the matrices go to the folder
`reports` of the configuration's home. Needs Fashion-MNIST (cluster.bench_images).
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim

LIMIT_MINUTES = {True: 15, False: 60}
"""Of the whole table, by whether it is the quick one."""
MAX_WORST = 0.10
"""Worst-task forgetting, mean over the seeds, that these rows have to stay below on the digits."""
HELD = {
    "task": ("EWC", "SI", "LwF", "replay, 200", "replay, all", "DER++, all", "PackNet", "progressive"),
    "domain": ("replay, 200", "replay, all", "DER++, all"),
    "class": ("replay, all", "DER++, all"),
}
FIGURES = {
    "average": "Accuracy",
    "learning": "Learning",
    "backward_transfer": "Backward",
    "forward_transfer": "Forward",
    "forgetting": "Forgetting",
    "worst_forgetting": "Worst task",
}
"""Of a matrix, and what the page calls them."""
Findings = dict[tuple[str, str, str], list[Any]]
"""By set, scenario and row: a Finding per seed."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    from cluster.bench_images import IMAGE_SETS
    from cluster.bench_studies import Study, run_studies
    from train.continual.scenarios import SCENARIOS
    from train.continual.study import TABLE

    seeds = range(2 if context.quick else 5)
    cells = [
        (data, scenario, name)
        for data in IMAGE_SETS
        for scenario in SCENARIOS
        for name, row in TABLE.items()
        if scenario in row.scenarios
    ]
    start = time.perf_counter()
    found = run_studies([Study(*cell, seed) for seed in seeds for cell in cells], note=context.note)
    minutes = (time.perf_counter() - start) / 60
    findings: Findings = {cell: [found[Study(*cell, seed)] for seed in seeds] for cell in cells}
    for data in IMAGE_SETS:
        for scenario in SCENARIOS:
            rows = {cell[2]: findings[cell] for cell in cells if cell[:2] == (data, scenario)}
            _tell(context, data, scenario, rows)
    yield from _claims(findings, len(seeds))
    limit = LIMIT_MINUTES[context.quick]
    yield Claim(
        "time of the table", f"< {limit} min", round(minutes, 1), "min", minutes < limit,
        f"{len(found)} runs of {len(seeds)} seeds in two processes of one thread",
    )  # fmt: skip


def _claims(findings: Findings, num_seeds: int) -> Iterable[Claim]:
    from train.continual.study import DEFAULT

    def mean(data: str, scenario: str, name: str, figure: str) -> float:
        return float(np.mean(_values(findings[data, scenario, name], figure)))

    for scenario, names in HELD.items():
        for name in names:
            worst = _values(findings["digits", scenario, name], "worst_forgetting")
            is_exact = name in ("PackNet", "progressive")
            figures = [
                f"{figure} accuracy {mean('digits', scenario, name, figure):.1%}" for figure in ("average", "learning")
            ]
            yield Claim(
                f"worst forgetting, digits, {scenario}: {name}", "0" if is_exact else f"< {MAX_WORST:.0%}",
                round(100 * float(np.mean(worst)), 2), "%", max(worst) == 0 if is_exact else float(np.mean(worst)) < MAX_WORST,
                f"{num_seeds} seeds, {', '.join(f'{value:.1%}' for value in worst)}; {', '.join(figures)}",
            )  # fmt: skip
    ewc, naive = (mean("digits", "task", name, "forgetting") for name in ("EWC", "naive"))
    yield Claim(
        "EWC's forgetting over naive's, digits, task", "<= 0.5", round(ewc / naive, 3), "x", ewc <= naive / 2,
        f"{num_seeds} seeds; {ewc:.1%} and {naive:.1%}",
    )  # fmt: skip
    replay, naive = (mean("digits", "class", name, "average") for name in ("replay, all", "naive"))
    yield Claim(
        "replay's accuracy over naive's, digits, class", ">= 4", round(replay / naive, 2), "x", replay >= 4 * naive,
        f"{num_seeds} seeds; {replay:.1%} and {naive:.1%}",
    )  # fmt: skip
    for scenario in HELD:
        default = findings["fashion", scenario, DEFAULT]
        worst = _values(default, "worst_forgetting")
        least = float(
            np.mean([_least_loss(*pair) for pair in zip(default, findings["fashion", scenario, "joint"], strict=True)])
        )
        yield Claim(
            f"worst forgetting, fashion, {scenario}: {DEFAULT}", f"< {MAX_WORST:.0%}", round(100 * float(np.mean(worst)), 2),
            "%", float(np.mean(worst)) < MAX_WORST if least < MAX_WORST else None,
            f"{num_seeds} seeds, {', '.join(f'{value:.1%}' for value in worst)}; "
            f"learning accuracy {mean('fashion', scenario, DEFAULT, 'learning'):.1%}; learning all tasks at once leaves the "
            f"worst task {least:.1%} below its best score here",
        )  # fmt: skip


def _least_loss(finding: Any, joint: Any) -> float:
    """What the worst earlier task loses to competition alone: its best score, less that of all tasks learned at once."""
    last = len(finding.matrix.scores) - 1
    best = [finding.matrix.scores[task:, task].max() for task in range(last)]
    return float(np.max(best - joint.matrix.scores[-1, :last]))


def _tell(context: BenchContext, data: str, scenario: str, rows: dict[str, list[Any]]) -> None:
    """The table's part on the terminal, and its page."""
    from cluster.bench_images import NUM_TASKS
    from train.continual.metrics import AccuracyMatrix
    from train.continual.report import WayReport, write_report

    num_seeds = len(next(iter(rows.values())))
    context.note(
        f"{data}, {scenario}-incremental, percent, mean and deviation over {num_seeds} seeds; seconds of a run"
    )
    context.note(f"  {'':13}{''.join(f'{title:>13}' for title in FIGURES.values())}{'Of joint':>10}{'Seconds':>9}")
    ways, joint = [], np.mean(_values(rows["joint"], "average"))
    for name, findings in rows.items():
        figures = {
            title: "-"
            if name == "joint" and figure not in ("average", "learning")
            else _spread(_values(findings, figure))
            for figure, title in FIGURES.items()
        }
        of_joint = f"{np.mean(_values(findings, 'average')) / joint:.3f}"
        seconds = f"{np.mean([one.seconds for one in findings]):.1f}"
        context.note(f"  {name:13}{''.join(f'{figure:>13}' for figure in figures.values())}{of_joint:>10}{seconds:>9}")
        figures |= {"Of joint": of_joint}
        mean = AccuracyMatrix(np.mean([one.matrix.scores for one in findings], axis=0))
        tasks = [f"task {index + 1}" for index in range(NUM_TASKS)]
        ways.append(WayReport(name, tasks, mean, figures=figures | {"Seconds": seconds}))
    path = context.config.home / "reports" / f"continual-{data}-{scenario}.html"
    note = (
        f"Means over {num_seeds} seeds of each seed's own figures, with the standard deviation over the seeds. The maps are "
        "of the mean matrix."
    )
    write_report(ways, path=path, title=f"{data.capitalize()}, {scenario}-incremental", note=note)
    context.note(f"  page: {path}")


def _values(findings: Sequence[Any], figure: str) -> list[float]:
    return [float(getattr(one.matrix, figure)) for one in findings]


def _spread(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"
