"""What the store holds is whole, and bears the name of its bytes; it is found again where it was."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
from pathlib import Path

import httpx
import pytest

from schemas.errors import InvalidConfiguration
from trainers.artifact import ArtifactCorrupt, ArtifactStore, StoreNotWritable
from trainers.store_server import StoreServer


def test_bytes_are_kept_under_their_digest_and_keeping_them_again_mends_them(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    digest = store.put(b"weights")
    assert digest == hashlib.sha256(b"weights").hexdigest()
    assert store.get(digest) == b"weights"
    store.path(digest).write_bytes(b"wEights")  # same size
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        store.get(digest)
    assert store.put(b"weights") == digest
    assert store.get(digest) == b"weights"
    assert [p.name for p in store.folder.iterdir()] == [f"{digest}.safetensors"]


def test_an_artifact_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="0" * 64):
        ArtifactStore(tmp_path).get("0" * 64)


def test_a_write_that_the_kernel_refuses_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    # As on a full disk: files of this process may not grow any more.
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, former[1]))
    try:
        with pytest.raises(StoreNotWritable, match="File too large"):
            store.put(os.urandom(4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(store.folder.iterdir()) == []


async def test_the_store_comes_back_on_its_port_and_says_so_when_it_cannot(tmp_path: Path) -> None:
    digest = ArtifactStore(tmp_path).put(b"weights")

    async def served(server: StoreServer) -> tuple[str, bytes]:
        url = await server.start()
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return url, (await http.get(f"{url}{digest}.safetensors")).content
        finally:
            await server.stop()

    def server(port: int = 0, public_url: str | None = None) -> StoreServer:
        return StoreServer(tmp_path, host="127.0.0.1", port=port, public_url=public_url)

    first = await served(server())
    assert first == await served(server())
    port = int(first[0].rstrip("/").rpartition(":")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        other = await served(server())
        assert other[0] != first[0]
        assert other[1] == b"weights"
        with pytest.raises(InvalidConfiguration, match=f"{port}.*store.port"):
            await server(port).start()
    public = server(public_url="https://models.example.org/store")
    assert await public.start() == "https://models.example.org/store/"
    await public.stop()


async def test_a_folder_that_cannot_be_made_is_a_setting_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = StoreServer(tmp_path / "file" / "store", host="127.0.0.1", port=0)
    with pytest.raises(InvalidConfiguration, match="store"):
        await server.start()
