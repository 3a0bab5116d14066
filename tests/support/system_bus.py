"""sockguard before the system bus of a container, installed as systemd/dbus/README.md says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.daemon import REPO

FILES: Final = REPO / "systemd" / "dbus"
PERSON: Final = "person"
"""An ordinary user of the container."""
UID: Final = 1500
TARGET_NAME: Final = "bus-test.target"
TARGET: Final = """
[Unit]
Requires=basic.target
Wants=dbus.service systemd-logind.service sockguard.service
After=basic.target dbus.service systemd-logind.service sockguard.service
"""


def install(root: Path) -> None:
    """What README.md says, as it says it."""
    rows = re.findall(r"^\| (\S+) \| (/\S+) \|$", (FILES / "README.md").read_text(), re.M)
    assert {name for name, _ in rows} == {
        str(file.relative_to(FILES)) for file in FILES.rglob("*") if file.is_file() and file.name != "README.md"
    }
    for name, target in rows:
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if target.endswith("/"):
            path.mkdir(exist_ok=True)
            path /= Path(name).name
        shutil.copy(FILES / name, path)
    (root / "etc/sockguard/sockguard.toml").write_text('[daemon]\ndrain_timeout = "1s"\n')
    (root / "etc/systemd/system" / TARGET_NAME).write_text(TARGET)
    enable = ("systemctl", f"--root={root}", "--quiet", "enable", "sockguard-dbus.socket", "sockguard.service")
    done = subprocess.run(enable, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    adduser = ("useradd", f"--prefix={root}", "--create-home", f"--uid={UID}", "--shell=/bin/sh", PERSON)
    done = subprocess.run(adduser, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
