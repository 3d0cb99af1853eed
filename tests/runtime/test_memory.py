"""What memory is free, from files as Linux has them: the machine's estimate and the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accel.runtime.memory import free_bytes

CPU = torch.device("cpu")
MB = 1024**2
MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    8192 kB\n"}


def v2(path: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{path}"
    stat = f"anon 5\ninactive_file {cached}\nactive_file 7\n"
    return {f"{folder}memory.max": limit, f"{folder}memory.current": f"{used}\n", f"{folder}memory.stat": stat}


def v1(path: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory/{path}"
    stat = f"inactive_file 1\ntotal_inactive_file {cached}\n"
    return {
        f"{folder}memory.limit_in_bytes": f"{limit}\n",
        f"{folder}memory.usage_in_bytes": f"{used}\n",
        f"{folder}memory.stat": stat,
    }


OF_V2 = {"proc/self/cgroup": "0::/a/b\n"}
OF_V1 = {"proc/self/cgroup": "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n1:name=systemd:/x\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        pytest.param(MEMINFO, 8 * MB, id="no groups"),
        pytest.param({**MEMINFO, **OF_V2, **v2("a/b/", "max\n", MB)}, 8 * MB, id="no limit"),
        pytest.param({**MEMINFO, **OF_V2, **v2("a/b/", f"{5 * MB}\n", 2 * MB)}, 3 * MB, id="v2"),
        pytest.param({**MEMINFO, **OF_V2, **v2("a/b/", f"{5 * MB}\n", 2 * MB, MB)}, 4 * MB, id="v2 with files read"),
        pytest.param(
            {**MEMINFO, **OF_V2, **v2("a/b/", f"{5 * MB}\n", 2 * MB), **v2("a/", f"{4 * MB}\n", 2 * MB)},
            2 * MB,
            id="a limit further up",
        ),
        pytest.param(
            {**MEMINFO, **OF_V2, **v2("", f"{6 * MB}\n", MB)}, 5 * MB, id="a container that has the host's path"
        ),
        pytest.param({**MEMINFO, **OF_V2, **v2("a/b/", f"{90 * MB}\n", MB)}, 8 * MB, id="a limit above the machine"),
        pytest.param({**MEMINFO, **OF_V2, **v2("a/b/", f"{MB}\n", 2 * MB)}, 0, id="over the limit"),
        pytest.param({**OF_V2, **v2("a/b/", f"{5 * MB}\n", 2 * MB)}, 3 * MB, id="no estimate"),
        pytest.param({**MEMINFO, **OF_V1, **v1("docker/abc/", 6 * MB, 4 * MB, MB)}, 3 * MB, id="v1"),
        pytest.param({**MEMINFO, **OF_V1, **v1("", 6 * MB, 2 * MB)}, 4 * MB, id="v1 in a container"),
        pytest.param({**MEMINFO, **OF_V1, **v1("", 9223372036854771712, MB)}, 8 * MB, id="v1 without a limit"),
        pytest.param({}, None, id="no Linux"),
    ],
)
def test_a_cpu_has_what_the_machine_and_the_groups_leave(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert free_bytes(CPU, tmp_path) == free


def test_other_devices_do_not_tell_and_this_machine_does() -> None:
    assert free_bytes(torch.device("mps")) is None and free_bytes(torch.device("xpu")) is None
    found = free_bytes(CPU)
    assert found is None or found > 0
