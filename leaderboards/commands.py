"""`zoo leaderboard`: boards as text, Markdown or JSON; adding and verifying records."""

from __future__ import annotations

from pathlib import Path

from ..zoo.errors import ZooError
from .board import Board, add, boards, find_records, markdown, plans, select, table, verify


def run_action(
    benchmark: str | None,
    *,
    runs: bool,
    add_runs: list[Path] | None = None,
    check: bool = False,
    as_markdown: bool = False,
) -> tuple[dict, list[str]]:
    """Facts and lines of the board `benchmark`, or else of those whose names hold it; no other is computed."""
    lines = [f"added {add(run)}" for run in add_runs or []]
    found = find_records(runs)
    if benchmark:
        chosen = {id(one): one for plan in select(plans(found), benchmark) for one in plan.found}
        found = list(chosen.values())  # of several views of one record it stands once
    if check:
        for one in found:
            verify(one)
        rows = sum(one.predictions is not None for one in found)
        if not rows:
            raise ZooError(
                f"none of {len(found)} records has its rows beside it; verify in a checkout of the repository"
            )
        lines.append(f"{rows} of {len(found)} records have their rows: every metric of these recomputed and equal")
    made = boards(found, benchmark)
    if not made:
        lines.append("no records yet; `zoo train ...` makes one, `--runs` shows it, `--add RUN` keeps it")
    for board in made:
        lines += ["", *_lines(board, as_markdown)]
    return {"boards": [_facts(board) for board in made]}, lines


def _lines(board: Board, as_markdown: bool) -> list[str]:
    origin = " (SYNTHETIC SAMPLE)" if board.sample else ""
    title = f"{board.name}{origin}, test n = {board.n_test}"
    if as_markdown:
        return [f"**{title}**", "", *markdown(board).splitlines()]
    cells = table(board)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        title,
        *(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ),
    ]


def _facts(board: Board) -> dict:
    shown = ("model", "settings", "recipe", "seeds", "value", "interval", "rank")
    rows = [
        {name: getattr(row, name) for name in shown} | {"records": [one.record.id for one in row.records]}
        for row in board.rows
    ]
    facts = {name: getattr(board, name) for name in ("name", "sample", "primary", "n_test", "floor")}
    return facts | {"rows": rows}
