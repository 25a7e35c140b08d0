"""How many actors go where, and how large they are; and what a report says of them."""

from __future__ import annotations

from espan_deploy.cluster.actors import Node, Resources, Size, placed
from espan_deploy.cluster.report import ClusterReport, WorkerReport
from espan_deploy.pipeline.report import FileReport

CPU_NODES = [Node("a", 8, 0), Node("b", 4, 0), Node("head", 0, 0)]
GPU_NODES = [Node("a", 32, 4), Node("b", 16, 2), Node("c", 64, 0)]


def test_a_worker_to_a_node_on_all_its_cores() -> None:
    places, sizes = placed(CPU_NODES, Resources())
    assert places == {"a": 1, "b": 1}
    assert (sizes["a"], sizes["b"]) == (Size(8, 0), Size(4, 0))


def test_more_workers_than_nodes_share_them() -> None:
    places, sizes = placed([Node("laptop", 8, 0)], Resources(actors=2))
    assert places == {"laptop": 2}
    assert sizes["laptop"] == Size(4, 0)


def test_a_worker_to_a_gpu_with_its_share_of_the_cores() -> None:
    places, sizes = placed(GPU_NODES, Resources())
    assert places == {"a": 4, "b": 2}
    assert sizes["a"] == sizes["b"] == Size(8, 1.0)
    assert placed(GPU_NODES, Resources(gpus=0.5))[0] == {"a": 8, "b": 4}


def test_what_has_no_room_yet_waits_for_nodes_to_come() -> None:
    places, sizes = placed(GPU_NODES, Resources(actors=64))
    assert places == {"a": 4, "b": 2, "": 58}
    assert sizes[""] == Size(8, 1.0)
    places, sizes = placed(CPU_NODES, Resources(actors=10, cpus=4))
    assert places == {"a": 2, "b": 1, "": 7}
    assert sizes[""] == Size(4, 0)


def test_an_empty_cluster_is_asked_for_one() -> None:
    assert placed([Node("head", 0, 0)], Resources())[0] == {"": 1}


def test_fewer_than_there_is_room_for_are_spread() -> None:
    assert placed(GPU_NODES, Resources(actors=3))[0] == {"a": 2, "b": 1}


def test_stragglers_are_named() -> None:
    report = ClusterReport(engine={}, model={"scale": 4}, settings={}, seconds=100.0)
    for index, pace in enumerate((100, 110, 90, 30)):
        worker = WorkerReport(f"worker {index}", f"machine{index}", f"node{index}")
        for number in range(10):
            row = FileReport(f"{index}-{number}.png", "", "done", width=pace, height=1)
            worker.add(row, number + 1.0)
        report.workers.append(worker)
    report.workers.append(
        WorkerReport("worker 4", "machine4", "node4", files=1, pixels=1, seconds=9.0)
    )  # too few to say
    report.workers[3].seconds, report.tail_seconds = 15.0, 6.0
    assert [worker.name for worker in report.stragglers] == ["worker 3"]
    summary = report.summary()
    assert "cluster: 5 worker(s) on 5 node(s)" in summary
    assert "slow: worker 3 on machine3 (21% of the median)" in summary
    assert "for the last 6.0 s others waited for worker 3 on machine3: 3-9.png" in summary
    assert report.to_dict()["cluster"]["stragglers"] == ["worker 3"]
