"""A guest that tells what it sees: Debian's kernel and busybox, with an init that prints its disks and network cards.

It is a bootable ISO that also boots as a disk, made with grub-mkrescue from installed packages; nothing is fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.machines import Machine, MachineError

RESCUE_ISO = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
GRUB = Path("/usr/lib/grub/i386-pc")
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "button", "evdev", "virtio_net", "virtio_blk", "af_packet", "vfat")
SAYS_S = 240.0  # without KVM and beside other work a boot takes a minute and more
CHARSETS = ("nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8")  # vfat asks for some of them

# No message of the kernel stands in the middle of a line: after `dmesg -n 1` it prints none but its last words.
# What the guest waits for may take long: an emulated machine on a busy one is slow, and its clock is the host's.
# `port=N` in the user data is a port of the host's loopback, which the guest tries to reach by way of its gateway.
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read module; do insmod /lib/$module; done < /lib/order
for event in /dev/input/event*; do
  ( dd if=$event bs=24 count=1 >/dev/null 2>&1; echo "power button"; sync; poweroff -f ) &
done
if [ -e /sys/class/net/eth0 ]; then
  ifconfig lo up; ifconfig eth0 up
  udhcpc -i eth0 -n -q -t 60 -T 1 -s /lease
  for try in $(seq 300); do [ -e /dev/vda1 ] && break; usleep 100000; done
  mkdir /seed; mount -t vfat -o ro /dev/vda1 /seed
  port=$(sed -n 's/.*port=\([0-9]*\).*/\1/p' /seed/user-data)
  if [ -n "$port" ]; then
    gateway=$(sed 's/[.][0-9]*$/.2/' /address)
    if echo hello | nc -w 3 $gateway $port; then echo "host reached"; else echo "host not reached"; fi
  fi
fi
echo "guest up"
last=
while :; do
  now=$(while read _ _ blocks name; do
      case $name in sd?) echo -n "$name:$blocks ";; esac
    done < /proc/partitions
    for card in /sys/class/net/eth*; do [ -e $card ] && echo -n "${card##*/}:$(cat $card/address) "; done)
  [ "$now" = "$last" ] || echo "sees $now."
  last=$now
  usleep 100000
done
"""
LEASE = r"""#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet
echo $ip > /address
echo "leased $ip"
"""


def _kernels() -> list[Path]:
    return [kernel for kernel in sorted(Path("/boot").glob("vmlinuz-*")) if _modules(kernel).is_dir()]


def _modules(kernel: Path) -> Path:
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


def missing() -> str | None:
    """What has to be installed for these tests, as a reason to skip."""
    packages = []
    for package, there in (
        ("qemu-system-x86", shutil.which("qemu-system-x86_64")),
        ("qemu-utils", shutil.which("qemu-img")),
        ("linux-image-cloud-amd64", _kernels()),
        ("busybox-static", Path("/bin/busybox").exists()),
        ("grub-common", shutil.which("grub-mkrescue")),
        ("grub-pc-bin", GRUB.is_dir()),
        ("xorriso", shutil.which("xorriso")),
        ("mtools", shutil.which("mformat")),
        ("grub-rescue-pc", RESCUE_ISO.exists()),
    ):
        if not there:
            packages.append(package)
    return f"needs the packages {' '.join(packages)}" if packages else None


needs_guest = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def build_guest(folder: Path) -> Path:
    """The ISO."""
    kernel = _kernels()[-1]
    root, disc = folder / "root", folder / "disc"
    for name in ("bin", "dev", "proc", "sys", "lib"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    for name, text in (("init", INIT), ("lease", LEASE)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    order = []
    for module in _modules_in_order(_modules(kernel).name):
        shutil.copy(module, root / "lib")
        order.append(module.name)
    (root / "lib" / "order").write_text("".join(f"{name}\n" for name in order))
    boot = disc / "boot" / "grub"
    boot.mkdir(parents=True)
    shutil.copy(kernel, disc / "boot" / "linux")
    (disc / "boot" / "initrd").write_bytes(gzip.compress(b"".join(_newc(root)), 1))
    lines = ["set timeout=0", "linux /boot/linux console=ttyS0 quiet loglevel=1 panic=1", "initrd /boot/initrd", "boot"]
    (boot / "grub.cfg").write_text("\n".join(lines) + "\n")
    iso = folder / "guest.iso"
    command = ["grub-mkrescue", "-o", iso, disc, "-d", GRUB, "--locales=", "--fonts=", "--themes="]
    subprocess.run(command, check=True, capture_output=True)
    return iso


def _modules_in_order(version: str) -> list[Path]:
    """Each after those that it needs."""
    paths: list[Path] = []
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert modprobe is not None
    for name in (*MODULES, *CHARSETS):
        shown = subprocess.run([modprobe, "-S", version, "--show-depends", name], check=True, capture_output=True, text=True)
        paths += [Path(line.split()[1]) for line in shown.stdout.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(paths))


def _newc(root: Path) -> Iterator[bytes]:
    """The folder as a cpio archive of the kind that the kernel unpacks."""
    for number, path in enumerate(sorted(root.rglob("*")), 1):
        stat, data = path.stat(), path.read_bytes() if path.is_file() else b""
        yield _entry(str(path.relative_to(root)), number, stat.st_mode, data)
    yield _entry("TRAILER!!!", 0, 0, b"")


def _entry(name: str, number: int, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


class Console:
    """Everything that a guest has printed since it was looked at first."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.text = machine, ""

    async def says(self, words: str, *, within_s: float = SAYS_S) -> str:
        """All text up to the words; the words are said from here on."""
        end_s = time.monotonic() + within_s
        while words not in self.text:
            assert self.machine.look().running, f"the guest ended and did not say {words!r}: {self.text[-2000:]}"
            assert time.monotonic() < end_s, f"the guest did not say {words!r} in {within_s:g} s: {self.text[-2000:]}"
            with contextlib.suppress(MachineError):  # it is too busy to answer just now
                self.text += await self.machine.console()
            await asyncio.sleep(0.1)
        before, _, self.text = self.text.partition(words)
        return before + words


__all__ = ["RESCUE_ISO", "SAYS_S", "Console", "build_guest", "needs_guest"]
