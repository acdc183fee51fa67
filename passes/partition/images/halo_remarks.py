"""What remarks say of an op whose ranks exchange halos: how much of which dim, and which extents would need less."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.locations import Origin
from ...base import RemarkKind
from ...counted_remarks import CountedRemarks
from ..emitter import LocalEmitter, Shards


def remark(remarks: CountedRemarks, emitter: LocalEmitter, cuts: Sequence[Shards], origin: Origin) -> None:
    """Remark the halos of an op on each cut dim, with the bytes that its ranks send for all of them.

    Where chunks do not hold whole strides, windows move with the rank, and the halo grows: the note says what fits.
    """
    for cut in cuts:
        assert cut.window is not None
        parts, stride = emitter.size(cut.axes), cut.window.up or cut.window.down
        halo, axes = cut.window.halo(parts), ", ".join(cut.axes)
        if halo.sent:
            rows = "all" if halo.gathers else f"{halo.before} before and {halo.after} after"
            sent = f"{rows} a rank's {halo.chunk} of dim {cut.dim}, {emitter.halo_bytes} B sent by each rank"
            remarks.applied(f"halo over {axes}: {sent}", origin)
        moves = halo.reads.drift != halo.has.drift or halo.keeps.drift
        if stride > 1 and moves:
            fitting = parts * stride if cut.window.down > 1 else parts
            remarks.add(
                RemarkKind.NOTE,
                f"{cut.window.inputs} elements of dim {cut.dim} over {parts} ranks of {axes} do not fit a stride of "
                f"{stride}: windows move with the rank; a multiple of {fitting} would need less",
                origin,
            )
