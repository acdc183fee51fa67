"""Cluster files: what they say, and what is wrong with one that says something else."""

from pathlib import Path

import pytest
from stretto.diagnostics import StrettoError
from stretto.dsl.clusters.cluster import Cluster

TEXT = 'cluster { nodes 128  gpus 8  gpu "H100-SXM-80GB"  nvlink 450GB/s  network 50GB/s  latency 4us }  # a comment'


def test_a_cluster_has_nodes_gpus_and_rates() -> None:
    cluster = Cluster.parse(TEXT)
    assert cluster == Cluster(128, 8, "H100-SXM-80GB", 50e9, 4e-6, 450e9)
    assert cluster.ranks == 1024


def test_an_item_changes_by_its_text_and_the_others_stay() -> None:
    cluster = Cluster.parse(TEXT)
    assert cluster.changed("network", "25GB/s") == Cluster(128, 8, "H100-SXM-80GB", 25e9, 4e-6, 450e9)
    assert cluster.changed("gpu", "B300-SXM").gpu == "B300-SXM"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("50GB/s", "50"), 'E0804.*"network" is a number with a unit glued to it, found 50'),
        (("50GB/s", "0GB/s"), 'E0804.*"network" is above 0, found 0GB/s'),
        (("50GB/s", "-1GB/s"), 'E0804.*"network" is above 0, found -1GB/s'),
        (("4us", "4GB/s"), 'E0804.*"latency" is a number with a unit'),
        (("nodes 128", "nodes 0"), 'E0804.*"nodes" is a whole number from 1, found 0'),
        (("nodes 128", "nodes 1.5"), 'E0804.*"nodes" is a whole number from 1, found 1.5'),
        (("nodes 128", "knodes 128"), 'E0804.*a cluster has no item "knodes"'),
        (("nodes 128", "nodes 1 nodes 2"), 'E0804.*the cluster sets "nodes" twice'),
        (("nodes 128", ""), 'E0804.*the cluster lacks "nodes"'),
        (('"H100-SXM-80GB"', "80"), 'E0804.*"gpu" is a name in double quotes, found 80'),
        (("cluster {", "mesh {"), "E0803.*this is no cluster file"),
        (("}", ""), "E0803.*the cluster ends too early"),
    ],
)
def test_a_wrong_cluster_is_refused_where_it_is_wrong(change: tuple[str, str], found: str) -> None:
    with pytest.raises(StrettoError, match=found) as error:
        Cluster.parse(TEXT.replace(*change), "h100.cluster")
    assert error.value.span is not None and error.value.span.file == "h100.cluster"


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(StrettoError, match=r"E0805.*cannot be read: No such file"):
        Cluster.load(tmp_path / "none.cluster")
