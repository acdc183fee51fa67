"""The counts of an exchange of rows, checked before anything is sent."""

from __future__ import annotations

from torch import Tensor

from .errors import RowCountError


def checked_counts(
    tensor: Tensor, bound: int, send_counts: Tensor, receive_counts: Tensor, rank: int, where: str
) -> tuple[list[int], list[int]]:
    """The rows that a rank sends to each member of its group, and those that it gets from each.

    Raises RowCountError E0338 for a negative count, more rows to send than there are, and more to receive than fit.
    """
    sent, received = send_counts.tolist(), receive_counts.tolist()
    problem = ""
    if min(*sent, *received) < 0:
        problem = f"a count of rows is {min(*sent, *received)}"
    elif sum(sent) > tensor.shape[0]:
        problem = f"{sum(sent)} rows are to be sent, and there are {tensor.shape[0]}"
    elif sum(received) > bound:
        problem = f"{sum(received)} rows come, and the bound is {bound}: nothing is dropped, so the run stops"
    if problem:
        raise RowCountError(
            "E0338",
            f"rank {rank}: {where or 'all_to_all_rows'}: {problem}",
            help="state a larger bound, up to the rows of all ranks of the group; without one there is room for these",
        )
    return sent, received
