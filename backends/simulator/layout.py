"""Where the ranks of a mesh lie on a cluster, and what communication costs there.

Ranks fill one node after the other, in the mesh's row-major order: the last axis has the nearest ranks. A collective
over several nodes is a ring that enters and leaves each node once for each of the group's GPUs there, because each
has a network link of its own: it goes at the slower of the node's links and of these together. Gathers and scatters
take a step for each rank of the ring; an all-reduce may go along a tree of the nodes instead, and the quicker counts.

Sources: Patarasuk and Yuan (JPDC 2009) for bytes; NCCL's rings over several network cards (nccl-tests,
PERFORMANCE.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log2, sqrt

from ...costs.kernels.collective import node_collective_seconds
from ...costs.kernels.gpu import MICROSECOND, Gpu
from ...diagnostics import StrettoError
from ...dsl.clusters.cluster import Cluster
from ...runtime.program.mesh import RankMesh

NETWORK = 0.95
"""The share of a network link's rate that collectives reach: 24 of 25 and 48 of 50 GB/s by nccl-tests over RDMA.

Source: S. Bekman, "Machine Learning Engineering Open Book", network chapter.
"""

STEP_SECONDS = 3.4e-6
"""What a GPU takes to hand a chunk on in a ring over nodes, beside the latency of the network.

Source: NVIDIA/nccl at 01afd20, src/graph/tuning.cc: hwLat of a ring over NVLink, simple protocol.
"""


class Layout:
    """The ranks of one mesh on one cluster. Errors: E0804 for GPUs that nothing joins, E0806 for too many ranks."""

    def __init__(self, mesh: RankMesh, cluster: Cluster, gpu: Gpu) -> None:
        if mesh.ranks > cluster.ranks:
            raise StrettoError(
                "E0806",
                f"the mesh has {mesh.ranks:,} ranks, the cluster {cluster.ranks:,} GPUs",
                help=f'set "nodes {ceil(mesh.ranks / cluster.gpus)}" in the cluster file, or take a smaller mesh',
            )
        rate = cluster.nvlink or gpu.link_rate
        if not rate and cluster.gpus > 1:
            raise StrettoError(
                "E0804",
                f'the data sheet of "{gpu.name}" has no link to the other GPUs of a node, and the cluster says none',
                help='say what joins them, such as "nvlink 25GB/s" for PCIe 4',
            )
        self._mesh, self._cluster, self._gpu = mesh, cluster, replace(gpu, link_rate=rate)
        self._nodes: dict[tuple[str, ...], tuple[int, int]] = {}

    def group(self, axes: Sequence[str]) -> tuple[int, int]:
        """The ranks of a group over some axes, and the nodes that they lie on (those of rank 0's group)."""
        key = tuple(axes)
        if key not in self._nodes:
            ranks = self._mesh.group(0, key)
            self._nodes[key] = len(ranks), len({rank // self._cluster.gpus for rank in ranks})
        return self._nodes[key]

    def collective_seconds(self, kind: str, axes: Sequence[str], nbytes: float, shift: int = 1) -> float:
        """A collective of a tensor of so many bytes, in seconds."""
        ranks, nodes = self.group(axes)
        if ranks == 1 or nbytes == 0:
            return 0.0
        if kind == "permute":
            return self.message_seconds(nbytes, between_nodes=nodes > 1)
        if nodes == 1:
            return float(node_collective_seconds(kind, nbytes, ranks, self._gpu))
        links, local = self._gpu.links, ranks / nodes
        across = self._cluster.network * NETWORK
        if kind == "all_to_all":
            return nbytes * (ranks - local) / ranks / across + self._cluster.latency + links.launch_us * MICROSECOND
        rounds = 2 if kind == "all_reduce" else 1
        sent = rounds * nbytes * (ranks - 1) / ranks
        rate = min(self._gpu.link_rate * links.bandwidth, local * across) if local > 1 else across
        chunks = 2 * sqrt(links.chunk_us * MICROSECOND * sent / rate)
        hops = rounds * (ranks * STEP_SECONDS + nodes * self._cluster.latency)
        if kind == "all_reduce":
            levels = ceil(log2(nodes))
            hops = min(hops, rounds * (local * STEP_SECONDS + levels * (STEP_SECONDS + self._cluster.latency)))
        return links.launch_us * MICROSECOND + hops + sent / rate + chunks

    def message_seconds(self, nbytes: float, *, between_nodes: bool) -> float:
        """A tensor from one rank to another, in seconds."""
        rate = self._cluster.network * NETWORK if between_nodes else self._gpu.link_rate * self._gpu.links.bandwidth
        latency = self._cluster.latency if between_nodes else self._gpu.links.hop_us * MICROSECOND
        return self._gpu.links.launch_us * MICROSECOND + latency + nbytes / rate

    def crosses_nodes(self, axis: str, one: int, other: int) -> bool:
        """Whether two coordinates of an axis lie on unlike nodes (for coordinate 0 of the other axes)."""
        a, b = (self._mesh.rank_at({**dict.fromkeys(self._mesh.sizes, 0), axis: at}) for at in (one, other))
        return a // self._cluster.gpus != b // self._cluster.gpus
