"""A stand-in for Cloud Storage on loopback, for google-cloud-storage and for TensorFlow's gs://, with faults to order.

It answers the part of the JSON API that these two use, from memory, in a thread. TensorFlow knows no other address than
that of Cloud Storage, but its libcurl honours a proxy, which this server is, too: asked to CONNECT, it speaks TLS and
answers by itself.
"""

import base64
import datetime
import http.server
import json
import re
import ssl
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable

import google_crc32c

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")  # that TensorFlow asks


class FakeGcs:
    """A server of objects in memory. A context manager.

    Attributes:
        buckets: bytes by object name by bucket name.
        generations: generation by (bucket, object name); 1 for those that are not in it.
        requests: (method, path, the header Range or None) of each request, in the order of their coming.
        fault: called with (number of the request from 1, path, offset of a media request or None) before it is
            answered. What it returns is done instead: an int is the status to answer; bytes are sent instead of the
            object's; ("break", n) sends n bytes of the object and breaks the connection off; ("stall", n) sends n
            and then nothing; None answers properly.
        page_size: number of objects in one page of a listing.
        address: for STORAGE_EMULATOR_HOST.
    """

    def __init__(self, **buckets: dict[str, bytes]):
        self.buckets = buckets
        self.generations: dict[tuple[str, str], int] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.fault: Callable = lambda number, path, offset: None
        self.page_size = 1000
        self.uploads: list[tuple[str, str, bytearray]] = []
        self.closed = threading.Event()
        self.lock = threading.RLock()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - closed by __exit__.
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *unused_error: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._certificate.close()
        if self._server.error:
            raise self._server.error

    def environment(self) -> dict[str, str]:
        """Returns what a process needs in its environment so that gs:// of TensorFlow is this server."""
        self._certificate.seek(0)
        self._certificate.write(_make_certificate())
        self._certificate.flush()
        self.tls.load_cert_chain(self._certificate.name)
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "https_proxy": self.address,
            "no_proxy": "",
            "CURL_CA_BUNDLE": self._certificate.name,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000",
        }

    def fail_every(self, period: int) -> None:
        """Orders that every such request is answered with 503."""
        self.fault = lambda number, path, offset: 503 if number % period == 0 else None

    def media_requests(self) -> list[tuple[str, str | None]]:
        """Returns (object name, the header Range or None) of each request for the bytes of an object."""
        asked = [(_media(path), ranges) for method, path, ranges in self.requests if method == "GET"]
        return [(media[1], ranges) for media, ranges in asked if media]

    def put(self, bucket: str, name: str, data: bytes) -> dict[str, str]:
        """Makes or replaces an object and returns what a listing says about it."""
        with self.lock:
            self.buckets[bucket][name] = data
            self.generations[bucket, name] = self.generations.get((bucket, name), 1) + 1
            return self.resource(bucket, name)

    def resource(self, bucket: str, name: str) -> dict[str, str]:
        """Returns what a listing says about an object."""
        data = self.buckets[bucket][name]
        crc32c = google_crc32c.value(data).to_bytes(4, "big")
        return {
            "name": name,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(self.generations.get((bucket, name), 1)),
            "updated": "2017-06-01T00:00:00.000Z",
            "crc32c": base64.b64encode(crc32c).decode(),
        }


def _make_certificate() -> bytes:
    """Returns a key and a certificate for Cloud Storage's hosts that it has signed itself, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _HOSTS[0])])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in _HOSTS]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    secret = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret + certificate.public_bytes(form)


def _media(path: str) -> tuple[str, str] | None:
    """Returns (bucket, object name) if the bytes of an object are asked for, as either client does."""
    path = urllib.parse.urlsplit(path).path
    found = re.fullmatch(r"/download/storage/v1/b/([^/]+)/o/([^/]+)|/(?!storage/|upload/|batch/)([^/]+)/(.+)", path)
    bucket, name = (found[1] or found[3], found[2] or found[4]) if found else ("", "")
    return (urllib.parse.unquote(bucket), urllib.parse.unquote(name)) if found else None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    error: BaseException | None = None

    def handle_error(self, *unused_args: object) -> None:
        """Keeps an error for the end of the test. Clients that break off are none."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            self.error = sys.exc_info()[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeGcs

    def log_message(self, *unused_args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        with self.fake.tls.wrap_socket(self.connection, server_side=True) as connection:
            type(self)(connection, self.client_address, self.server)
        self.close_connection = True

    def _answer(self) -> None:
        asked = self.headers.get("Range")
        body = self._read_body()
        with self.fake.lock:
            self.fake.requests.append((self.command, self.path, asked))
            number = len(self.fake.requests)
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        media = _media(self.path)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "bytes=0-").groups()
        fault = self.fake.fault(number, self.path, int(first) if media else None)
        if isinstance(fault, int):
            self._fail(fault, "as ordered")
            return
        listed = re.fullmatch(r"/(?:upload/)?storage/v1/b/([^/]+)/o", url.path)
        named = re.fullmatch(
            r"/storage/v1/b/([^/]+)(?:/storageLayout|/o/([^/]+)(?:/rewriteTo/b/([^/]+)/o/([^/]+))?)?", url.path
        )
        bucket, name, *target = media or [urllib.parse.unquote(part or "") for part in (listed or named).groups()] + [
            ""
        ]
        if bucket not in self.fake.buckets:
            self._fail(404, "The specified bucket does not exist.")
        elif named and not name:
            self._say(200, {"name": bucket})
        elif listed and self.command == "GET":
            self._say(200, self._list(bucket, query))
        elif listed:
            self._upload(bucket, query, body)
        elif name not in self.fake.buckets[bucket] or query.get("generation", self._generation(bucket, name)) != (
            self._generation(bucket, name)
        ):
            self._fail(404, f"No such object: {bucket}/{name}")
        elif media:
            self._send_object(self.fake.buckets[bucket][name], int(first), last, fault)
        elif self.command == "DELETE":
            del self.fake.buckets[bucket][name]
            self._say(204)
        elif target[0]:
            self._say(200, {"done": True, "resource": self.fake.put(*target[:2], self.fake.buckets[bucket][name])})
        else:
            self._say(200, self.fake.resource(bucket, name))

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _generation(self, bucket: str, name: str) -> str:
        return str(self.fake.generations.get((bucket, name), 1))

    def _list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        with self.fake.lock:
            names = sorted(name for name in self.fake.buckets[bucket] if name.startswith(prefix))
        folders = set()
        for name in names if delimiter else ():
            folder, slash, _ = name[len(prefix) :].partition(delimiter)
            folders.update([prefix + folder + slash] if slash else [])
        names = [name for name in names if not name.startswith(tuple(folders))]
        start = int(query.get("pageToken", 0))
        end = start + min(self.fake.page_size, int(query.get("maxResults", 1000)))
        answer = {"items": [self.fake.resource(bucket, name) for name in names[start:end]], "prefixes": sorted(folders)}
        return {**answer, "nextPageToken": str(end)} if end < len(names) else answer

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        """A resumable upload: a request begins it, further ones bring bytes or ask how many have come."""
        if self.command == "POST":
            if query["uploadType"] == "media":
                self._say(200, self.fake.put(bucket, query["name"], body))
                return
            self.fake.uploads.append((bucket, query["name"], bytearray()))
            address = f"https://{self.headers['Host']}{self.path}&upload_id={len(self.fake.uploads) - 1}"
            self._say(200, None, {"Location": address})
            return
        bucket, name, received = self.fake.uploads[int(query["upload_id"])]
        start, total = re.fullmatch(
            r"bytes (?:(\d+)-\d+|\*)/(\d+)", self.headers.get("Content-Range", "bytes */0")
        ).groups()
        received[int(start or len(received)) :] = body
        if len(received) < int(total):
            self._say(308, None, {"Range": f"bytes=0-{len(received) - 1}"} if received else {})
        else:
            self._say(200, self.fake.put(bucket, name, bytes(received)))

    def _send_object(self, data: bytes, start: int, last: str, fault: object) -> None:
        if start and start >= len(data):
            self._fail(416, "Requested range not satisfiable")
            return
        stop = min(int(last) + 1 if last else len(data), len(data))
        body = fault if isinstance(fault, bytes) else data[start:stop]
        self.send_response(206 if self.headers.get("Range") else 200)
        if self.headers.get("Range"):
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if isinstance(fault, tuple):
            body = body[: fault[1]]
            self.close_connection = True
        self.wfile.write(body)
        if isinstance(fault, tuple) and fault[0] == "stall":
            self.fake.closed.wait()

    def _fail(self, status: int, message: str) -> None:
        self._say(status, {"error": {"code": status, "message": message}})

    def _say(self, status: int, answer: dict | None = None, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode() if answer else b""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
