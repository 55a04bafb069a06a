"""Hosts on one machine: Linux namespaces with an address, processes and shared memory of their own, and a slow link each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_NETWORK = "10.77.0"
_BRIDGE = "bridge"
_TOOLS = {"ip": "iproute2", "tc": "iproute2"} | dict.fromkeys(("nsenter", "setpriv", "unshare"), "util-linux")
"""Programs, and the packages that they are in."""


class Unavailable(Exception):
    """Why there can be no such hosts here, in a line."""


@dataclass(frozen=True)
class Host:
    """A machine that is on. Nothing in it listens beyond the network's other hosts."""

    name: str
    address: str
    pid: int
    """Of its first process, in whose namespaces all others are."""

    def enter(self) -> list[str]:
        """What to put before a command that is to run there."""
        return ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "-u", "-w", "--"]


class Network:
    """Context manager: hosts come and go, each on a port of one switch.

    All namespaces end with the processes in them, and these with this one, however it ends: nothing is left behind.

    Raises:
        Unavailable: on entering.
    """

    def __init__(self) -> None:
        self._hosts, self._count = dict[str, subprocess.Popen[bytes]](), 0

    def __enter__(self) -> Network:
        if os.geteuid():
            raise Unavailable("network namespaces need root")
        for tool, package in _TOOLS.items():
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is not installed: it is in the package {package}")
        try:
            self._switch = self._first_process("switch", "true")
            self._ip("link", "add", _BRIDGE, "type", "bridge")
            self._ip("link", "set", _BRIDGE, "up")
            self.add("probe", 1)
            self.remove("probe")
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            self.__exit__()
            raise Unavailable(f"network namespaces are not allowed here: {told.strip()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._hosts):
            self.remove(name)

    def add(self, name: str, megabits: int) -> Host:
        """Switch a new machine on, whose link passes so many `megabits` a second each way."""
        self._count += 1
        pid = self._first_process(
            name, "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
        )
        host = Host(name, f"{_NETWORK}.{self._count}", pid)
        self._ip("link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip("link", "set", "dev", name, "master", _BRIDGE, "up")
        inside = host.enter()
        for command in (
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{host.address}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
        ):
            _run([*inside, *command])
        # What leaves an end of the link is slowed: here on the way to the host, there on the way from it.
        limit = ["root", "tbf", "rate", f"{megabits}mbit", "burst", "256kb", "latency", "400ms"]
        _run([*self._inside_switch(), "tc", "qdisc", "add", "dev", name, *limit])
        _run([*inside, "tc", "qdisc", "add", "dev", "eth0", *limit])
        return host

    def remove(self, name: str) -> None:
        """Switch a machine off: its power is gone, nothing in it gets to say anything."""
        process = self._hosts.pop(name)
        process.kill()
        process.wait()

    def cut(self, name: str) -> None:
        """Pull the host's cable out of the switch."""
        self._ip("link", "set", "dev", name, "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        self._ip("link", "set", "dev", name, "up")

    def bytes(self) -> dict[str, tuple[int, int]]:
        """What has crossed each host's link so far: to it, and from it."""
        found = json.loads(
            _run([*self._inside_switch(), "ip", "-s", "-json", "link", "show", "type", "veth"])
        )
        return {
            each["ifname"]: (each["stats64"]["tx"]["bytes"], each["stats64"]["rx"]["bytes"]) for each in found
        }

    def _ip(self, *words: str) -> None:
        _run([*self._inside_switch(), "ip", *words])

    def _inside_switch(self) -> list[str]:
        return ["nsenter", "-t", str(self._switch), "-n", "--"]

    def _first_process(self, name: str, prepare: str) -> int:
        """Make namespaces that live as long as a process which does nothing; its id."""
        options = ["--net", "--pid", "--mount", "--mount-proc", "--uts", "--fork", "--kill-child"]
        # As any first process it has to bury those whose parents are gone; a sleep alone would not.
        script = f"hostname {name} && {prepare} && echo ready && while true; do sleep 1000; done"
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *options, "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._hosts[name] = process
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"ready\n":
            raise subprocess.SubprocessError(process.stderr.read().decode())
        (child,) = psutil.Process(process.pid).children()
        return child.pid


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class RayHosts:
    """Ray on hosts of a network, kept up on each as a service manager would; only who has the token gets in."""

    def __init__(
        self, network: Network, logs: Path, environment: dict[str, str], options: Sequence[str]
    ) -> None:
        self._network, self._logs, self._environment, self._options = network, logs, environment, options
        self._started: dict[str, tuple[Host, subprocess.Popen[bytes]]] = {}
        self.head: Host | None = None

    def join(self, name: str, megabits: int, cpus: int = 1) -> None:
        """Switch a machine on, with Ray; the first is the head."""
        host = self._network.add(name, megabits)
        if self.head is None:
            self.head = host
            role = ["--head", "--port=6379", "--include-dashboard=true"]
        else:
            role = [f"--address={self.head.address}:6379"]
        command = [
            "ray",
            "start",
            "--block",
            *role,
            f"--node-ip-address={host.address}",
            f"--num-cpus={cpus}",
        ]
        script = 'while true; do "$@"; sleep 1; done'
        with open(self._logs / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*host.enter(), "sh", "-c", script, "sh", *command, *self._options],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._started[name] = host, process

    def leave(self, name: str, *, graceful: bool, patience: float = 120.0) -> None:
        """Switch a machine off; `graceful`: after Ray there was asked to end, and has."""
        _, process = self._started.pop(name)
        if graceful:
            shell = psutil.Process(process.pid).children()[0]
            services = shell.children()
            for each in (shell, *services):
                each.terminate()
            psutil.wait_procs(services, timeout=patience)
        self._network.remove(name)
        process.wait()

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on the head's host."""
        assert self.head is not None
        return subprocess.run(
            [*self.head.enter(), *command],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def wait(self, patience: float) -> None:
        """Until the head runs jobs.

        Raises:
            TimeoutError: it does not come up.
        """
        end = time.monotonic() + patience
        while (tried := self.run("ray", "job", "submit", "--", "true")).returncode:
            if time.monotonic() > end:
                raise TimeoutError(f"no head: {tried.stderr[-2000:]}")
            time.sleep(1)
