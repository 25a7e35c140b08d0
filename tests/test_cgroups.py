"""Limits of containers: from written files, as the kernel writes them, and from real groups where one may be made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espan_deploy import cgroups, machine
from espan_deploy.cgroups import Limits, limits

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712\n"

V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def written(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root with /proc and /sys as the kernel would write them; files: below /sys/fs/cgroup."""
    proc = tmp_path / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(f"23 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}")
    for name, content in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


class TestVersion2:
    def test_the_groups_own_limits(self, tmp_path: Path) -> None:
        files = {"app/memory.max": f"{4 * GIB}\n", "app/memory.high": "max\n", "app/cpu.max": "200000 100000\n"}
        root = written(tmp_path, "0::/app\n", V2_MOUNT.format(root="/"), files)
        assert limits(root) == Limits(4 * GIB, 2.0)

    def test_no_limits(self, tmp_path: Path) -> None:
        files = {"app/memory.max": "max\n", "app/cpu.max": "max 100000\n"}
        assert limits(written(tmp_path, "0::/app\n", V2_MOUNT.format(root="/"), files)) == Limits()

    def test_the_tightest_of_nested_groups(self, tmp_path: Path) -> None:
        files = {
            "pod/memory.max": f"{2 * GIB}\n",
            "pod/cpu.max": "400000 100000\n",
            "pod/app/memory.max": f"{8 * GIB}\n",
            "pod/app/cpu.max": "max 100000\n",
            "pod/app/worker/memory.max": "max\n",
            "pod/app/worker/cpu.max": "75000 50000\n",
            "other/memory.max": "1000\n",
        }
        root = written(tmp_path, "0::/pod/app/worker\n", V2_MOUNT.format(root="/"), files)
        assert limits(root) == Limits(2 * GIB, 1.5)

    def test_a_throttle_counts_as_a_limit(self, tmp_path: Path) -> None:
        files = {"app/memory.max": f"{4 * GIB}\n", "app/memory.high": f"{3 * GIB}\n"}
        assert limits(written(tmp_path, "0::/app\n", V2_MOUNT.format(root="/"), files)).memory_bytes == 3 * GIB

    def test_in_a_namespace_of_its_own(self, tmp_path: Path) -> None:
        """As in Docker and Kubernetes today: the container's group looks like the root."""
        files = {"memory.max": f"{GIB}\n", "cpu.max": "50000 100000\n"}
        assert limits(written(tmp_path, "0::/\n", V2_MOUNT.format(root="/"), files)) == Limits(GIB, 0.5)


class TestVersion1:
    def test_limits(self, tmp_path: Path) -> None:
        files = {
            "memory/app/memory.limit_in_bytes": f"{GIB}\n",
            "cpu,cpuacct/app/cpu.cfs_quota_us": "300000\n",
            "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
        }
        groups = "5:memory:/app\n4:cpu,cpuacct:/app\n1:name=systemd:/app\n"
        assert limits(written(tmp_path, groups, V1_MOUNTS.format(root="/"), files)) == Limits(GIB, 3.0)

    def test_no_limits(self, tmp_path: Path) -> None:
        files = {
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        }
        groups = "5:memory:/\n4:cpu,cpuacct:/\n"
        assert limits(written(tmp_path, groups, V1_MOUNTS.format(root="/"), files)) == Limits()

    def test_a_container_that_is_told_its_path_outside(self, tmp_path: Path) -> None:
        """Without a namespace, /proc/self/cgroup names a folder of the host, which the mount shows as its root."""
        files = {"memory/memory.limit_in_bytes": f"{GIB}\n", "memory/job/memory.limit_in_bytes": f"{GIB // 2}\n"}
        mounts = V1_MOUNTS.format(root="/docker/0123abcd")
        assert limits(written(tmp_path, "5:memory:/docker/0123abcd/job\n", mounts, files)).memory_bytes == GIB // 2

    def test_a_group_that_the_mount_does_not_show(self, tmp_path: Path) -> None:
        files = {"memory/memory.limit_in_bytes": f"{GIB}\n"}
        mounts = V1_MOUNTS.format(root="/docker/0123abcd")
        assert limits(written(tmp_path, "5:memory:/elsewhere\n", mounts, files)).memory_bytes == GIB


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    files = {"memory/app/memory.limit_in_bytes": f"{GIB}\n", "unified/app/cpu.max": "100000 100000\n"}
    mounts = V1_MOUNTS.format(root="/") + V2_MOUNT.format(root="/").replace("cgroup rw", "cgroup/unified rw", 1)
    assert limits(written(tmp_path, "5:memory:/app\n0::/app\n", mounts, files)) == Limits(GIB, 1.0)


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    mounts = V2_MOUNT.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040groups")
    root = written(tmp_path, "0::/app\n", mounts, {"my groups/app/memory.max": f"{GIB}\n"})
    assert limits(root).memory_bytes == GIB


def test_where_there_are_none(tmp_path: Path) -> None:
    assert limits(tmp_path) == Limits()


@given(groups=st.text(), mounts=st.text(), value=st.text())
def test_whatever_stands_there_is_no_error(
    tmp_path_factory: pytest.TempPathFactory, groups: str, mounts: str, value: str
) -> None:
    files = {"memory.max": value, "cpu.max": value, "memory/memory.limit_in_bytes": value}
    root = written(
        tmp_path_factory.mktemp("root"),
        f"0::/\n5:memory:/\n{groups}",
        f"{V2_MOUNT.format(root='/')}{V1_MOUNTS.format(root='/')}{mounts}",
        {name: content.encode(errors="replace").decode() for name, content in files.items()},
    )
    limits(root)


class TestMachine:
    @pytest.mark.parametrize(("cores", "usable"), [(None, 8), (0.5, 1), (1.0, 1), (1.5, 2), (64.0, 8)], ids=str)
    def test_cores(self, monkeypatch: pytest.MonkeyPatch, cores: float | None, usable: int) -> None:
        monkeypatch.setattr(cgroups, "limits", lambda: Limits(cores=cores))
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        assert machine.usable_cores() == usable

    def test_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cgroups, "limits", Limits)
        whole = machine.memory_bytes()
        for limit, usable in ((whole // 3, whole // 3), (whole * 3, whole)):
            monkeypatch.setattr(cgroups, "limits", lambda limit=limit: Limits(memory_bytes=limit))
            assert machine.memory_bytes() == usable


SEEN = "from espan_deploy.machine import memory_bytes, usable_cores; print(memory_bytes(), usable_cores())"


@pytest.fixture
def own_groups() -> Iterator[dict[str, Path]]:
    """A new group for memory and one for processor time, each within the one this process is in."""
    made: dict[str, Path] = {}
    try:
        for name in ("memory", "cpu"):
            folders = [path for controller, path in cgroups._groups(Path("/")) if controller in (name, "")]
            for folder in folders:
                group = folder / "espan-deploy-test"
                try:
                    group.mkdir(exist_ok=True)
                except OSError:
                    continue
                made[name] = group
                files = [group / f for f in ("memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max")]
                if any(file.exists() and file.name.startswith(name) for file in files):
                    break
                group.rmdir()
                del made[name]
        yield made
    finally:
        for group in set(made.values()):
            group.rmdir()


def inside(group: Path, code: str) -> str:
    """What a Python process in a group prints."""
    moved = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); {code}"
    return subprocess.run([sys.executable, "-c", moved], capture_output=True, text=True, check=True).stdout


class TestRealGroups:
    def test_memory(self, own_groups: dict[str, Path]) -> None:
        if "memory" not in own_groups:
            pytest.skip("no group for memory can be made here")
        group = own_groups["memory"]
        (file,) = [f for f in (group / "memory.limit_in_bytes", group / "memory.max") if f.exists()]
        file.write_text(str(300 << 20))
        assert inside(group, SEEN).split()[0] == str(300 << 20)

    def test_processors(self, own_groups: dict[str, Path]) -> None:
        if "cpu" not in own_groups:
            pytest.skip("no group for processor time can be made here")
        group = own_groups["cpu"]
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
        assert inside(group, SEEN).split()[1] == "1"
