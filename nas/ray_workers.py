"""Workers on a Ray cluster: one actor each, with its own space on its own device. The extra `[ray]`.

Ray brings tasks and results across machines; blocks travel with them, so that nodes need no common folder. The driver alone writes the record.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from nas.attended import ATTEMPTS, TIMEOUT_S, AttendedWorkers, Lost, Work, sendable
from nas.errors import InputError
from nas.executor import Origin, Workplace

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError
except ImportError:
    raise InputError("--executor ray needs Ray; install it with: pip install 'stage-nas[ray]'") from None

_CONNECT_S = 5.0


class RayWorkers(AttendedWorkers):
    """An executor of Ray actors.

    Args:
        origin: the space the actors make for themselves, of `origin.threads` CPUs each.
        n_workers: actors.
        address: of a cluster, `HOST:PORT`, `ray://HOST:PORT` or `auto`; None starts Ray on this machine and stops it in the end.
        gpus_each: GPUs that each actor holds.
        timeout_s: seconds a task may take before its actor counts as hung.
        attempts: how often a task is tried before it fails.

    Raises:
        InputError: no cluster answers at the address, or it is too small.
    """

    apart = True

    def __init__(
        self,
        origin: Origin,
        n_workers: int,
        *,
        address: str | None = None,
        gpus_each: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        super().__init__(n_workers, timeout_s=timeout_s, attempts=attempts)
        self._origin, self._gpus = origin, gpus_each
        self._setups: list[Any] = []
        _connect(address, n_workers * origin.threads)
        try:
            self._check_room()
        except InputError:
            ray.shutdown()
            raise
        self._actor = ray.remote(_Place).options(num_cpus=origin.threads, num_gpus=gpus_each, max_restarts=0)

    def share(self, setup: Callable[[Workplace], None]) -> None:
        """Has every actor do this before its next task; the content goes to the cluster's object store once."""
        self._setups.append(ray.put(setup))

    def close(self) -> None:
        """Ends the actors, and Ray itself where it was started for them."""
        super().close()
        ray.shutdown()

    def _start(self, number: int) -> "_Worker":
        del number
        return _Worker(self._actor.remote(self._origin), self._setups)

    def _check_room(self) -> None:
        """More than the cluster has would wait for ever."""
        there = ray.cluster_resources()
        for name, each in (("GPU", self._gpus), ("CPU", float(self._origin.threads))):
            if each * self.n_workers > there.get(name, 0.0):
                wanted, found = f"{each * self.n_workers:g} {name}s", f"{there.get(name, 0.0):g}"
                raise InputError(f"{self.n_workers} workers need {wanted}, the Ray cluster has {found}; use fewer --workers or add nodes")


class _Worker:
    """One actor."""

    def __init__(self, actor: Any, setups: list[Any]) -> None:
        self._actor, self._setups, self._done = actor, setups, 0
        self.alive = True

    def do(self, task: Work, timeout_s: float | None) -> Any:
        """The task's result; its own exceptions are raised as they are."""
        try:
            while self._done < len(self._setups):
                self._result(self._actor.do.remote(self._setups[self._done]), timeout_s)
                self._done += 1
            return self._result(self._actor.do.remote(task), timeout_s)
        except GetTimeoutError:
            raise Lost(f"no answer within {timeout_s:g} s") from None
        except RayActorError as error:
            raise Lost(str(error).strip().splitlines()[0]) from None

    def kill(self) -> None:
        self.alive = False
        with contextlib.suppress(Exception):  # Ray itself may be gone; there is nothing left to end then
            ray.kill(self._actor)

    def _result(self, reference: Any, timeout_s: float | None) -> Any:
        answer, failure = ray.get(reference, timeout=timeout_s)
        if failure is not None:
            raise failure
        return answer


class _Place:
    """The actor: makes its space at the first task, then answers one task after the other."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._place: Workplace | None = None

    def do(self, task: Work) -> tuple[Any, Exception | None]:
        """The task's result and None, or None and what went wrong."""
        try:
            self._place = self._place or Workplace(self._origin)
            return task(self._place), None
        except Exception as error:
            return None, sendable(error)


def _connect(address: str | None, cpus: int) -> None:
    """Joins the cluster at an address, or starts Ray here with room for so many CPUs."""
    if address is None:
        quiet: dict[str, Any] = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
    else:
        _check_reachable(address)
        quiet = {"address": address}
    try:
        ray.init(**quiet, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(no_cluster(address or "this machine", error)) from error


def no_cluster(address: str, error: Exception) -> str:
    """What was found where a cluster was to answer, and the way out."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"no Ray cluster answers at '{address}' ({said}); start one with: ray start --head (docs/cluster.md), or leave out --address to start Ray here"


def _check_reachable(address: str) -> None:
    """Raises soon where Ray would try for long."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise InputError(f"a Ray address reads HOST:PORT, ray://HOST:PORT or auto, got '{address}'")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as connection:
            speaks = os.environ.get("RAY_USE_TLS") == "1" or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise InputError(no_cluster(address, error)) from None
    if not speaks:
        raise InputError(no_cluster(address, ValueError("something other than Ray is there")))


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side greets as a gRPC server does, which all of Ray's ports are: with a SETTINGS frame (RFC 9113, 3.4)."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    connection.settimeout(_CONNECT_S)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    greeting = connection.recv(9)
    return len(greeting) > 3 and greeting[3] == settings[3]
