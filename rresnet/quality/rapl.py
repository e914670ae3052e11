"""The energy counters of processor packages (RAPL: Intel's, and AMD's under the same name)."""

import time
from pathlib import Path

ZONES = Path("/sys/class/powercap")
# The least that a counter holds before it wraps is some 65 kJ, which takes minutes at a server processor's power.
KEEP_UP_SECONDS = 20.0


class Rapl:
    """Adds up the energy of all processor packages from the moment when it is made.

    A counter wraps, at a range of its own, and tells only the difference between two readings: long work must
    `keep_up`.
    """

    def __init__(self) -> None:
        self._joules: float | None = 0.0
        self._counters: dict[Path, int] = {}  # the last reading of each package, microjoules
        try:
            # A zone beside the packages (psys) is the whole platform, which has them inside; zones in them are parts.
            zones = [zone for zone in sorted(ZONES.glob("intel-rapl:*")) if zone.name.count(":") == 1]
            packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
            self._ranges = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in packages}
            self._counters = {zone: _reading(zone) for zone in packages}
        except (OSError, ValueError):
            self._counters = {}
        if not self._counters:
            self._joules = None
        self._read_at = time.monotonic()

    def joules(self) -> float | None:
        """Energy so far; None where it can't be read, as for users other than root."""
        try:
            for package, before in self._counters.items():
                now = self._counters[package] = _reading(package)
                used = now - before if now >= before else now - before + self._ranges[package]
                self._joules = None if self._joules is None else self._joules + used / 1e6
        except (OSError, ValueError):
            self._joules = None
        self._read_at = time.monotonic()
        return self._joules

    def keep_up(self) -> None:
        """Read the counters if they were not read for a while, so that none wraps twice in between."""
        if self._counters and time.monotonic() - self._read_at >= KEEP_UP_SECONDS:
            self.joules()


def _reading(package: Path) -> int:
    return int((package / "energy_uj").read_text())
