"""Texts and files of real tools become readings; the texts follow the documents that each comment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerpn.runtime.bench import nvidia_smi, tegrastats
from edgerpn.runtime.bench.reading import Reading, summarize
from edgerpn.runtime.bench.sysfs import SysfsProbe, has_pinned_clocks

# NVIDIA Jetson Linux Developer Guide r36.4, tegrastats Utility; a line of an Orin NX stands in
# github.com/rbonghi/jetson_stats, issue 624. As root, JetPack 6.
ORIN_NX = (
    "05-15-2026 18:30:28 RAM 6982/15656MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) "
    "CPU [97%@1984,95%@1984,3%@729,off,off,off,off,off] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 "
    "NVDEC off NVJPG off VIC 31%@115 OFA off APE 174 cv0@63.031C cpu@65.562C soc2@64.156C gpu@63.5C tj@65.562C "
    "cv2@-256C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW"
)
# The same guide, r35; the rails of an AGX Orin stand in its device tree (tegra234-p3701). JetPack 5, two clusters.
AGX_ORIN = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) "
    "CPU [90%@2201,100%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,510] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 "
    "CV0@73.625C CPU@77.281C Tboard@62C GPU@69.125C tj@77.281C VDD_GPU_SOC 3150mW/2971mW NC 0mW/0mW "
    "VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
# Tegra Linux Driver Package Development Guide r32.5, appendix tegrastats; a Xavier NX with JetPack 4, no unit.
XAVIER_NX = (
    "RAM 2387/7774MB (lfb 961x4MB) SWAP 0/3887MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [14%@1190,9%@1190,2%@1190,1%@1344,off,off] EMC_FREQ 1%@1600 GR3D_FREQ 0%@114 VIC_FREQ 0%@115 APE 150 "
    "MTS fg 0% bg 3% AO@31C GPU@31.5C PMIC@100C AUX@31.5C CPU@33C thermal@31.95C VDD_IN 3528/3569 "
    "VDD_CPU_GPU_CV 410/426 VDD_SOC 1107/1115"
)
# NVIDIA Jetson Linux Developer Guide r38, tegrastats Utility; a Thor with JetPack 7: three values a rail, two a
# sensor, no load of the GPU, one list of frequencies (github.com/rbonghi/jetson_stats, pull request 894).
THOR = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1560] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C "
    "soc012@55.375C/58.781C VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW "
    "VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW"
)
# The same guide, r36.4; an Orin Nano without root, which hides the frequencies.
ORIN_NANO_USER = (
    "RAM 2690/7620MB (lfb 6x1MB) SWAP 479/3810MB (cached 3MB) CPU [3%,7%,1%,0%,off,off] GR3D_FREQ 0% cpu@39.5C "
    "gpu@37.5C tj@39.5C VDD_IN 5079mW/5079mW VDD_CPU_GPU_CV 696mW/696mW VDD_SOC 1104mW/1104mW"
)


def read(line: str) -> Reading:
    found = tegrastats.parse_line(line + "\n", 7.0)
    assert found is not None
    assert found.at_s == 7.0
    return found


def test_a_line_of_an_orin_nx() -> None:
    found = read(ORIN_NX)
    assert found.power_w == {"VDD_IN": 17.946, "VDD_CPU_GPU_CV": 8.896, "VDD_SOC": 3.923}
    assert found.clock_mhz == {"GPU": 713, "memory": 3199, "CPU": 1984}
    assert found.load_percent == {"GPU": 84, "memory": 18, "CPU": 65}
    # A sensor that is off reports -256 C.
    assert found.temperature_c == {"cv0": 63.031, "cpu": 65.562, "soc2": 64.156, "gpu": 63.5, "tj": 65.562}


def test_a_line_of_an_agx_orin_whose_gpu_has_two_clusters() -> None:
    found = read(AGX_ORIN)
    assert found.power_w == {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 14.312, "VIN_SYS_5V0": 4.968, "VDDQ_VDD2_1V8AO": 1.091}
    assert (found.clock_mhz["GPU"], found.load_percent["GPU"]) == (510, 14)
    assert found.temperature_c["Tboard"] == 62


def test_a_line_of_jetpack_4_has_no_units_and_a_sensor_that_measures_nothing() -> None:
    found = read(XAVIER_NX)
    assert found.power_w == {"VDD_IN": 3.528, "VDD_CPU_GPU_CV": 0.41, "VDD_SOC": 1.107}
    assert (found.clock_mhz["GPU"], found.clock_mhz["CPU"]) == (114, 1344)
    assert "PMIC" not in found.temperature_c


def test_a_line_of_a_thor_has_maxima_and_no_load_of_the_gpu() -> None:
    found = read(THOR)
    assert found.power_w == {"VDD_GPU": 37.939, "VDD_CPU_SOC_MSS": 30.059, "VIN_SYS_5V0": 15.486, "VIN": 124.486}
    assert found.temperature_c == {"cpu": 58.25, "tj": 66.625, "gpu": 56.937, "soc012": 55.375}
    assert found.clock_mhz == {"GPU": 1574, "memory": 4266, "CPU": 2601}
    assert found.load_percent == {"CPU": 2.5}


def test_a_line_without_root_has_power_but_no_clocks() -> None:
    found = read(ORIN_NANO_USER)
    assert found.power_w["VDD_IN"] == 5.079
    assert found.clock_mhz == {}
    assert found.load_percent == {"GPU": 0, "CPU": 2.75}


@pytest.mark.parametrize("line", ["", "\n", "tegrastats: permission denied", "RAM 1/2MB (lfb 1x1MB)", "VDD_IN mW"])
def test_other_lines_hold_no_reading(line: str) -> None:
    assert tegrastats.parse_line(line, 0.0) is None


@pytest.mark.parametrize(
    ("line", "total_of", "total_w"),
    [
        (ORIN_NX, ("VDD_IN",), 17.946),
        (THOR, ("VIN",), 124.486),
        # An AGX Orin measures no input: the sum of its rails.
        (AGX_ORIN, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 22.43),
    ],
)
def test_the_power_of_a_jetson_is_its_input_or_the_sum_of_its_rails(
    line: str, total_of: tuple[str, ...], total_w: float
) -> None:
    found = summarize([read(line), read(line)], prefers_gpu=True)
    assert found.total_of == total_of
    assert found.total_w == pytest.approx(total_w)


def test_readings_are_summed_up_by_quantity() -> None:
    readings = [
        Reading(at_s=0.0, power_w={"GPU": 100.0}, clock_mhz={"GPU": 1000}, throttling=("GPU: power cap",)),
        Reading(at_s=1.0, power_w={"GPU": 140.0, "CPU package": 30.0}, temperature_c={"GPU": 60}),
    ]
    found = summarize(readings, prefers_gpu=True)
    assert (found.power_w["GPU"].mean, found.power_w["GPU"].min, found.power_w["GPU"].max) == (120, 100, 140)
    assert (found.total_w, found.total_of) == (120, ("GPU",))
    assert found.throttling == {"GPU: power cap": 1}
    assert found.num_readings == 2
    # A model on the CPU does not cost the power of the graphics card.
    assert summarize(readings, prefers_gpu=False).total_of == ("CPU package",)
    none = summarize([], prefers_gpu=True)
    assert (none.total_w, none.total_of, none.power_w) == (None, (), {})


FIELDS = [*nvidia_smi.FIELDS, "clocks_event_reasons.active"]


# `nvidia-smi --help-query-gpu`, and the bits of NVML's nvmlClocksEventReasons.
@pytest.mark.parametrize(
    ("mask", "throttling"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),
        ("0x0000000000000004", ("GPU: power cap",)),
        ("0x0000000000000060", ("GPU: software thermal slowdown", "GPU: hardware thermal slowdown")),
        ("[N/A]", ()),
    ],
)
def test_a_line_of_nvidia_smi(mask: str, throttling: tuple[str, ...]) -> None:
    found = nvidia_smi.parse_line(f"412.17, 1755, 2619, 58, 97, {mask}\n", FIELDS, 3.0)
    assert found == Reading(
        at_s=3.0,
        power_w={"GPU": 412.17},
        clock_mhz={"GPU": 1755, "memory": 2619},
        temperature_c={"GPU": 58},
        load_percent={"GPU": 97},
        throttling=throttling,
    )


def test_nvidia_smi_of_a_jetson_knows_nothing() -> None:
    assert nvidia_smi.parse_line("[N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n", FIELDS, 0.0) is None
    assert nvidia_smi.parse_line("No devices were found\n", FIELDS, 0.0) is None
    assert nvidia_smi.parse_line("nan, inf, -inf, [N/A], [N/A], 0x0\n", FIELDS, 0.0) is None


def test_nvidia_smi_is_asked_for_the_name_of_the_reasons_that_it_knows(tmp_path: Path) -> None:
    """Drivers before 535 know the old name only, and one unknown field is an error for all."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n*event_reasons*) echo \'Field "clocks_event_reasons.active" is not a valid field '
        "to query.'; exit 2;;\n*) echo 0x0000000000000000;;\nesac\n"
    )
    program.chmod(0o755)
    words, fields = nvidia_smi.command(str(program), 250)
    assert fields == [*nvidia_smi.FIELDS, "clocks_throttle_reasons.active"]
    assert words[0] == str(program)
    assert "--loop-ms=250" in words
    assert nvidia_smi.query(str(tmp_path / "none"), ["name"]) == []
    program.write_text("#!/bin/sh\nprintf 'GPU \\231, 5\\n'\n")
    assert nvidia_smi.query(str(program), ["name", "driver_version"]) == ["GPU \ufffd", "5"]


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


# The kernel's documentation of hwmon/ina3221: voltages in mV, currents in mA, in7 is the sum of the shunts.
ORIN_FILES = {
    "class/hwmon/hwmon1/name": "ina3221",
    "class/hwmon/hwmon1/in1_label": "VDD_IN",
    "class/hwmon/hwmon1/in1_input": 5000,
    "class/hwmon/hwmon1/curr1_input": 1600,
    "class/hwmon/hwmon1/in2_label": "NC",
    "class/hwmon/hwmon1/in2_input": 0,
    "class/hwmon/hwmon1/curr2_input": 0,
    "class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "class/hwmon/hwmon1/in7_input": 12,
    "class/hwmon/hwmon2/name": "soctherm_oc",
    "class/hwmon/hwmon2/oc1_event_cnt": 4,
    "class/devfreq/17000000.gpu/cur_freq": 624750000,
    "class/devfreq/17000000.gpu/min_freq": 306000000,
    "class/devfreq/17000000.gpu/max_freq": 624750000,
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": 51250,
    "class/thermal/thermal_zone1/type": "cv0-thermal",
    "class/thermal/thermal_zone1/temp": -256000,
    "class/thermal/cooling_device0/type": "pwm-fan",
    "class/thermal/cooling_device0/cur_state": 3,
    "class/thermal/cooling_device1/type": "cpufreq-cpu0",
    "class/thermal/cooling_device1/cur_state": 0,
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1510400,
    "devices/system/cpu/cpu0/cpufreq/scaling_min_freq": 729600,
    "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 1510400,
    "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 729600,
}


def test_the_files_of_a_jetson_without_tegrastats(tmp_path: Path) -> None:
    write(tmp_path, ORIN_FILES)
    probe = SysfsProbe(tmp_path, cpuinfo=tmp_path / "none")
    found = probe.read()
    assert found is not None
    assert found.power_w == {"VDD_IN": pytest.approx(8.0)}
    assert found.clock_mhz == {"CPU": pytest.approx(1510.4), "GPU": pytest.approx(624.75)}
    assert found.temperature_c == {"cpu-thermal": pytest.approx(51.25)}
    assert found.throttling == ()


def test_a_cooling_device_that_slows_and_a_new_over_current_event_are_throttling(tmp_path: Path) -> None:
    write(tmp_path, ORIN_FILES)
    probe = SysfsProbe(tmp_path, has_tegrastats=True)
    before = probe.read()
    write(tmp_path, {"class/thermal/cooling_device1/cur_state": 2, "class/hwmon/hwmon2/oc1_event_cnt": 5})
    meanwhile = probe.read()
    after = probe.read()
    assert before is not None
    assert meanwhile is not None
    assert after is not None
    # With tegrastats, rails and clocks come from it.
    assert (before.power_w, before.clock_mhz, before.temperature_c, before.throttling) == ({}, {}, {}, ())
    assert meanwhile.throttling == ("cooling: cpufreq-cpu0", "over-current")
    assert after.throttling == ("cooling: cpufreq-cpu0",)


def test_a_thor_has_a_chip_with_one_channel(tmp_path: Path) -> None:
    # hwmon/ina238: the power in microwatts.
    chip = "class/hwmon/hwmon3"
    write(tmp_path, {f"{chip}/name": "ina238", f"{chip}/label": "VIN", f"{chip}/power1_input": 28906000})
    found = SysfsProbe(tmp_path, cpuinfo=tmp_path / "none").read()
    assert found is not None
    assert found.power_w == {"VIN": pytest.approx(28.906)}


def test_the_energy_of_a_processor_becomes_power_also_when_its_counter_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "class/powercap/intel-rapl:0"
    write(
        tmp_path,
        {
            f"{package}/energy_uj": 1_000_000,
            f"{package}/max_energy_range_uj": 10_000_000,
            "class/powercap/intel-rapl:0:0/energy_uj": 5,
        },
    )
    now_s = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("edgerpn.runtime.bench.sysfs.time.monotonic", lambda: next(now_s))
    probe = SysfsProbe(tmp_path, cpuinfo=tmp_path / "none")
    assert probe.read() is None
    for energy_uj, watts in ((9_000_000, 4.0), (3_000_000, 2.0)):
        write(tmp_path, {f"{package}/energy_uj": energy_uj})
        found = probe.read()
        assert found is not None
        assert found.power_w == {"CPU package": pytest.approx(watts)}


def test_clocks_are_pinned_when_cpu_and_gpu_have_one_frequency(tmp_path: Path) -> None:
    assert has_pinned_clocks(tmp_path) is None
    write(tmp_path, ORIN_FILES)
    assert has_pinned_clocks(tmp_path) is False
    write(
        tmp_path,
        {
            "devices/system/cpu/cpu0/cpufreq/scaling_min_freq": 1510400,
            "class/devfreq/17000000.gpu/min_freq": 624750000,
        },
    )
    assert has_pinned_clocks(tmp_path) is True


def test_a_virtual_machine_shows_the_clocks_of_its_cores_only(tmp_path: Path) -> None:
    # /proc/cpuinfo of two cores, shortened.
    core = "processor\t: {}\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {}\ncache size\t: 512 KB\n\n"
    (tmp_path / "cpuinfo").write_text(core.format(0, "2596.122") + core.format(1, "3100.5"))
    found = SysfsProbe(tmp_path, cpuinfo=tmp_path / "cpuinfo").read()
    assert found is not None
    assert found.clock_mhz == {"CPU": 3100.5}
    assert (found.power_w, found.temperature_c, found.throttling) == ({}, {}, ())


def test_a_machine_that_shows_nothing_gives_no_reading(tmp_path: Path) -> None:
    assert SysfsProbe(tmp_path, cpuinfo=tmp_path / "none").read() is None
