"""What is imported when: the parts that train in one process need neither Ray nor MLflow. Layers: `make lint`."""

from __future__ import annotations

import subprocess
import sys

CORE = """
import importlib, pkgutil, sys
for name in ("ray", "mlflow"):
    sys.modules[name] = None
import sdr1
for module in pkgutil.walk_packages(sdr1.__path__, "sdr1."):
    if "on_ray" not in module.name and not module.name.startswith(("sdr1.distributed.", "sdr1.__main__")):
        importlib.import_module(module.name)
"""


def test_the_core_can_be_imported_without_ray_and_mlflow() -> None:
    subprocess.run([sys.executable, "-c", CORE], check=True)
