"""What is imported when: the parts that train in one process need neither Ray nor MLflow. Layers: `make lint`."""

from __future__ import annotations

import subprocess
import sys

CORE = """
import importlib, pkgutil, sys
for name in ("ray", "mlflow"):
    sys.modules[name] = None
import sdr1
# On a cluster, as a command, in MLflow.
ELSEWHERE = "on_ray", "__main__", ".pyfunc_code"
for module in pkgutil.walk_packages(sdr1.__path__, "sdr1."):
    if not any(part in module.name for part in ELSEWHERE) and not module.name.startswith("sdr1.distributed."):
        importlib.import_module(module.name)
"""


def test_the_core_can_be_imported_without_ray_and_mlflow() -> None:
    subprocess.run([sys.executable, "-c", CORE], check=True)
