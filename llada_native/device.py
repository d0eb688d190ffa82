"""The devices of the task interface. This build runs on the CPU."""
from __future__ import annotations

from enum import IntEnum

from . import checks


class DeviceType(IntEnum):
    """Devices by the numbers of the C interface."""

    DEVICE_TYPE_CPU = 0
    DEVICE_TYPE_NVIDIA = 1
    DEVICE_TYPE_CAMBRICON = 2
    DEVICE_TYPE_ASCEND = 3
    DEVICE_TYPE_METAX = 4
    DEVICE_TYPE_MOORE = 5
    DEVICE_TYPE_ILUVATAR = 6
    DEVICE_TYPE_KUNLUN = 7
    DEVICE_TYPE_HYGON = 8


def check_device(device: object, ndev: object) -> None:
    """Refuse what this build does not have.

    Raises
    ------
    TypeError, ValueError
        `device` is neither a `DeviceType` nor "cpu", not the CPU, or `ndev` is not 1.
    """
    if isinstance(device, str) and device.lower() == "cpu":
        device = DeviceType.DEVICE_TYPE_CPU
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError(f"device: expected a DeviceType, such as DeviceType.DEVICE_TYPE_CPU, or 'cpu', found {device!r}")
    if device not in list(DeviceType):
        raise ValueError(f"device: expected a DeviceType, found {checks.shown(device)}")
    if device != DeviceType.DEVICE_TYPE_CPU:
        raise ValueError(f"device: expected DEVICE_TYPE_CPU, the only device of this build, found {DeviceType(device).name}")
    if isinstance(ndev, bool) or not isinstance(ndev, int):
        raise TypeError(f"ndev: expected a whole number, found {ndev!r}")
    if ndev != 1:
        raise ValueError(f"ndev: expected 1, found {checks.shown(ndev)}: all cores are one device; num_threads says how "
                         "many of them to use")
