"""The counts of an exchange of rows, checked before anything is sent."""

from __future__ import annotations

from torch import Tensor

from .errors import RowCountError, RowsAboveBound

_FAULT = "no bound of a plan is too small here: this is an error in the program; please report it"


def checked_counts(
    tensor: Tensor, bound: int, send_counts: Tensor, receive_counts: Tensor, rank: int, where: str
) -> tuple[list[int], list[int]]:
    """The rows that a rank sends to each member of its group, and those that it gets from each.

    Raises RowCountError E0338 for a negative count, more rows to send than there are, and more to receive than fit.
    """
    sent, received = send_counts.tolist(), receive_counts.tolist()
    rows = tensor.shape[0]
    if min(*sent, *received) < 0:
        raise _refused(rank, where, f"a count of rows is {min(*sent, *received)}", _FAULT)
    if sum(sent) > rows:
        raise _refused(rank, where, f"{sum(sent)} rows are to be sent, and there are {rows}", _FAULT)
    if sum(received) > bound:
        problem = f"{sum(received)} rows come, and the bound is {bound}: nothing is dropped, so the run stops"
        raise _refused(rank, where, problem, _help(rows, bound, len(sent)), RowsAboveBound)
    return sent, received


def _help(rows: int, bound: int, members: int) -> str:
    """What to do about more rows than fit; a rank's rows fit in any bound that a plan may state."""
    if bound < rows or bound >= rows * members:
        return _FAULT
    return (
        f"the program has room for {bound / rows:.4g} times the {rows} rows of a rank: state a larger bound for these "
        f"experts, up to {members}, or none; if the plan states a larger one, the program does not follow it: please "
        "report it"
    )


def _refused(
    rank: int, where: str, problem: str, help: str, kind: type[RowCountError] = RowCountError
) -> RowCountError:
    return kind("E0338", f"rank {rank}: {where or 'all_to_all_rows'}: {problem}", help=help)
