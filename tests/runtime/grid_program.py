"""A tiny training program on a (dp=2, tp=2) mesh, written by hand, with an uneven dim and a buffer."""

from __future__ import annotations

from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Location, Output, Shard

from .tiny_programs import F32, S, step

MESH = (("dp", 2), ("tp", 2))


def grid(dtype: str = F32, mesh: tuple[tuple[str, int], ...] = MESH, factor: float = 2.0) -> Program:
    """loss = sum((x @ w + b)^2), y = x @ w + b: x and y cut over dp, w (5, 3) cut by rows over tp into 3 and 2.

    `seen` is a buffer that counts forwards. `factor` 2 makes the gradients right.
    """
    rows, batch = (Shard(0, ("tp",), 3, 5),), (Shard(0, ("dp",), 3, 6),)
    code = (
        step("rank.shard", S(2), axes=["tp"], dim=1, chunk=3, out=[4], loc=0),
        step("aten.mm.default", S(4), S(0), out=[5], loc=0),
        step("comm.all_reduce_start", S(5), axes=["tp"], reduce="sum", out=[6], free=[5], loc=1),
        step("comm.wait", S(6), out=[7], free=[6], loc=1),
        step("aten.add.Tensor", S(7), S(1), out=[8], free=[7]),
        step("aten.pow.Tensor_Scalar", S(8), 2, out=[9]),
        step("aten.sum.default", S(9), out=[10], free=[9]),
        step("comm.all_reduce_start", S(10), axes=["dp"], reduce="sum", out=[11], free=[10], loc=2),
        step("comm.wait", S(11), out=[12], free=[11], loc=2),
        step("aten.add.Scalar", S(3), 1.0, out=[13]),
        step("aten.mul.Tensor", S(8), S(14), out=[15], free=[14]),
        step("aten.mul.Scalar", S(15), factor, out=[16], free=[15]),
        step("aten.sum.dim_IntList", S(16), [0], out=[17]),
        step("comm.all_reduce_start", S(17), axes=["dp"], reduce="sum", out=[18], free=[17]),
        step("aten.t.default", S(4), out=[19], free=[4]),
        step("aten.mm.default", S(19), S(16), out=[20], free=[19, 16]),
        step("comm.all_reduce_start", S(20), axes=["dp"], reduce="sum", out=[21], free=[20], loc=1),
        step("comm.wait", S(21), out=[22], free=[21], loc=1),
        step("comm.wait", S(18), out=[23], free=[18]),
    )
    reference = [
        step("aten.mm.default", S(2), S(0), out=[4]),
        step("aten.add.Tensor", S(4), S(1), out=[5]),
        step("aten.pow.Tensor_Scalar", S(5), 2, out=[6]),
        step("aten.sum.default", S(6), out=[7]),
        step("aten.add.Scalar", S(3), 1.0, out=[8]),
    ]
    arguments = (
        Input("w", "parameter", (5, 3), dtype, 0, rows, aliases=("w", "tied"), requires_grad=True),
        Input("b", "parameter", (3,), dtype, 1, requires_grad=True),
        Input("x", "input", (6, 5), dtype, 2, batch, index=0),
        Input("seen", "buffer", (1,), dtype, 3),
        Input("loss", "tangent", (), dtype, 14, index=0),
    )
    return Program(
        manifest=Manifest(mode="train", dtype=dtype, mesh=mesh),
        inputs=arguments,
        outputs=(
            Output("loss", "output", (), dtype, 12, index=0),
            Output("y", "output", (6, 3), dtype, 8, batch, index=1),
            Output("w", "gradient", (5, 3), dtype, 22, rows),
            Output("b", "gradient", (3,), dtype, 23),
            Output("seen", "buffer", (1,), dtype, 13),
        ),
        functions={"main": Function(24, (0, 1, 2, 3, 14), (12, 8, 22, 23, 13), code, backward_at=10)},
        locations=(Location("model.py", 7, "proj"), Location("model.py", 8), Location("model.py", 9)),
        reference={
            "inputs": [
                {
                    "name": argument.name,
                    "kind": argument.kind,
                    "aliases": [],
                    "shape": list(argument.shape),
                    "dtype": dtype,
                    "index": dim,
                }
                for argument, dim in zip(arguments[:4], (-1, -1, 0, -1), strict=True)
            ],
            "outputs": [
                {"kind": "output", "name": "loss", "index": 0, "slot": 7},
                {"kind": "output", "name": "y", "index": 1, "slot": 5},
                {"kind": "buffer", "name": "seen", "index": -1, "slot": 8},
            ],
            "slots": 9,
            "code": [argument.to_json() for argument in reference],
        },
    )
