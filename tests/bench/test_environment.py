"""The environment: what nvidia-smi tells, what other processes take."""

from __future__ import annotations

import json

from espan_deploy.bench.environment import CpuUse, environment, gpus, one_line

QUERY = "NVIDIA RTX A6000, 550.54, 49140, 1800, 2100, 8001, 41, 71.35, 300.00, Enabled\n"


def answers(command: list[str]) -> str | None:
    return QUERY if len(command) > 1 else "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4 |"


def test_gpus_as_nvidia_smi_tells() -> None:
    (gpu,) = gpus(answers)
    assert gpu["name"] == "NVIDIA RTX A6000"
    assert gpu["driver_version"] == "550.54"
    assert gpu["clocks_sm"] == 1800.0
    assert gpu["cuda"] == "12.4"


def test_no_gpu_without_nvidia_smi() -> None:
    assert gpus(lambda _: None) == []
    assert gpus(lambda _: "NVIDIA-SMI has failed") == []


def test_values_a_gpu_does_not_tell_stay_text() -> None:
    (gpu,) = gpus(lambda _: QUERY.replace("71.35", "[N/A]"))
    assert gpu["power_draw"] == "[N/A]"


def test_the_environment_is_plain_data_and_one_line() -> None:
    facts = environment(threads=3, ask=answers)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["threads"] == 3
    line = one_line(facts)
    assert "\n" not in line
    for expected in (facts["cpu"], "3 of", "NVIDIA RTX A6000, driver 550.54, CUDA 12.4", facts["python"]):
        assert expected in line


def test_what_others_take_is_what_is_not_ours() -> None:
    before, after = CpuUse(10.0, 100.0, 5.0), CpuUse(20.0, 118.0, 14.0)
    assert after.others_since(before) == 0.9
    assert CpuUse(20.0, None, 14.0).others_since(before) is None
    assert CpuUse(20.0, 108.0, 14.0).others_since(before) == 0.0
    assert CpuUse.now().own_seconds > 0
