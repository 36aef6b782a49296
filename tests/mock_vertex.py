"""A stand-in on loopback for the parts of Vertex AI and Cloud Storage that the READMEs' cloud commands use.

gcloud passes on nearly everything that a job file holds, even misspelt keys and accelerators that do not exist; it is
the service that refuses them. `complaint` is a check of the same kind.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse
from typing import Any

import google_crc32c

# (machine types, accelerator, how many of it), from Vertex AI's page on compute resources; only what the kit names.
MACHINES = [
    (r"g2-standard-(4|8|12|16|32)", "NVIDIA_L4", (1,)),
    (r"g2-standard-24", "NVIDIA_L4", (2,)),
    (r"g2-standard-48", "NVIDIA_L4", (4,)),
    (r"g2-standard-96", "NVIDIA_L4", (8,)),
    (r"n1-standard-(4|8|16)", "NVIDIA_TESLA_T4", (1, 2, 4)),
]
KEYS = {
    "jobSpec": {"workerPoolSpecs", "scheduling", "baseOutputDirectory", "serviceAccount", "tensorboard", "network"},
    "workerPoolSpecs": {"machineSpec", "replicaCount", "containerSpec", "diskSpec"},
    "machineSpec": {"machineType", "acceleratorType", "acceleratorCount"},
    "containerSpec": {"imageUri", "command", "args", "env"},
    "env": {"name", "value"},
    "scheduling": {"strategy", "timeout", "restartJobOnWorkerRestart", "disableRetries", "maxWaitDuration"},
    "baseOutputDirectory": {"outputUriPrefix"},
}


def complaint(job: dict[str, Any]) -> str:
    """Returns why the service would refuse a CustomJob, or "" if it would not.

    Args:
        job: the body of the request: {"displayName": ..., "jobSpec": what a job file holds}.
    """
    spec = job["jobSpec"]
    pools = spec.get("workerPoolSpecs") or []
    parts = [("jobSpec", spec)]
    parts += [(name, spec.get(name, {})) for name in ("scheduling", "baseOutputDirectory")]
    for pool in pools:
        container = pool.get("containerSpec", {})
        parts += [("workerPoolSpecs", pool), ("machineSpec", pool.get("machineSpec", {})), ("containerSpec", container)]
        parts += [("env", variable) for variable in container.get("env", [])]
    for name, part in parts:
        if unknown := set(part) - KEYS[name]:
            return f"{name}: there is no {', '.join(sorted(unknown))}"
    scheduling = spec.get("scheduling", {})
    if scheduling.get("strategy", "STANDARD") not in ("STANDARD", "SPOT", "FLEX_START"):
        return f"scheduling: there is no strategy {scheduling['strategy']}"
    if not re.fullmatch(r"\d+s", scheduling.get("timeout", "1s")):
        return "scheduling: timeout must be a number of seconds and an s"
    if not spec.get("baseOutputDirectory", {}).get("outputUriPrefix", "gs://").startswith("gs://"):
        return "baseOutputDirectory: outputUriPrefix must begin with gs://"
    if [int(pool.get("replicaCount", 0)) for pool in pools[:1]] != [1]:
        return "workerPoolSpecs: the first is the chief's, with a replicaCount of 1"
    for pool in pools:
        if not pool.get("containerSpec", {}).get("imageUri"):
            return "containerSpec: imageUri is missing"
        machine, accelerator, count = (
            pool.get("machineSpec", {}).get(key) for key in ("machineType", "acceleratorType", "acceleratorCount")
        )
        if not any(
            re.fullmatch(types, str(machine)) and accelerator == name and count in counts
            for types, name, counts in MACHINES
        ):
            return f"machineSpec: there is no {machine} with {count} {accelerator}"
    return ""


class MockVertex:
    """The server. A context manager.

    Attributes:
        requests: (what was asked for, path, parsed body or None) of each request that changes something, in order.
        objects: bytes by (bucket, object name).
        address: of the server, without a slash at the end.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.objects: dict[tuple[str, str], bytes] = {}
        self.error: BaseException | None = None
        handler = type("Handler", (_Handler,), {"mock": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.handle_error = lambda *unused: setattr(self, "error", sys.exc_info()[1])
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "MockVertex":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *unused_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self.error:
            raise self.error

    def environment(self, folder: str) -> dict[str, str]:
        """Returns the environment variables with which gcloud speaks to this server and to nothing else.

        Args:
            folder: where gcloud may keep its configuration.
        """
        token = f"{folder}/token"
        with open(token, "w", encoding="utf-8") as file:
            file.write("a-token")
        return {
            "CLOUDSDK_CONFIG": folder,
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": token,
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{self.address}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.address}/storage/v1/",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def asked(self, what: str) -> list[Any]:
        """Returns the bodies of all requests for something, in order."""
        return [body for name, unused_path, body in self.requests if name == what]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock: MockVertex

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._path_and_query()
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            self._list(match[1], query.get("prefix", ""), query.get("delimiter", ""))
        elif match := re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
            key = (match[2], urllib.parse.unquote(match[3]))
            if key not in self.mock.objects:
                self._send({"error": {"code": 404, "message": "there is no such object"}}, 404)
            elif query.get("alt") == "media":
                self._send(self.mock.objects[key])
            else:
                self._send(self._resource(*key))
        else:
            self._unknown(path)

    def do_POST(self) -> None:
        path, query = self._path_and_query()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            assert query["uploadType"] == "multipart", query
            boundary = re.search(r"boundary=['\"]*([^'\";]+)", self.headers["Content-Type"])[1].encode()
            meta, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in body.split(b"--" + boundary)[1:3])
            data = data[: -2 if data.endswith(b"\r\n") else -1]
            key = (match[1], json.loads(meta)["name"])
            self.mock.objects[key] = data
            self._send(self._resource(*key))
            return
        body = json.loads(body)
        if path == "/storage/v1/b":
            self._answer("bucket", path, body, body)
        elif match := re.fullmatch(r"/v1/(projects/[^/]+/locations/[^/]+)/([\w:]+)", path):
            parent, what = match.groups()
            reason = complaint(body) if what == "customJobs" else ""
            if what == "models:upload":
                model = {"@type": "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse"}
                model["model"] = f"{parent}/models/5000"
                self._answer(
                    what, path, body, {"name": f"{model['model']}/operations/1", "done": True, "response": model}
                )
            elif what not in ("customJobs", "batchPredictionJobs"):
                self._unknown(path)
            elif reason:
                self._send({"error": {"code": 400, "message": reason, "status": "INVALID_ARGUMENT"}}, 400)
            else:
                self._answer(what, path, body, {**body, "name": f"{parent}/{what}/1000", "state": "JOB_STATE_PENDING"})
        else:
            self._unknown(path)

    def _path_and_query(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query))

    def _answer(self, what: str, path: str, body: Any, answer: dict[str, Any]) -> None:
        self.mock.requests.append((what, path, body))
        self._send(answer)

    def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
        names = sorted(name for b, name in self.mock.objects if b == bucket and name.startswith(prefix))
        rests = {name: name[len(prefix) :].partition(delimiter or "\n") for name in names}
        self._send(
            {
                "items": [self._resource(bucket, name) for name, rest in rests.items() if not rest[1]],
                "prefixes": sorted({prefix + rest[0] + rest[1] for rest in rests.values() if rest[1]}),
            }
        )

    def _resource(self, bucket: str, name: str) -> dict[str, str]:
        data = self.mock.objects[bucket, name]
        path = f"/download/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
        return {
            "bucket": bucket,
            "name": name,
            "generation": "1",
            "metageneration": "1",
            "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(data).digest()).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "mediaLink": self.mock.address + path,
        }

    def _unknown(self, path: str) -> None:
        self.mock.requests.append(("unknown", path, None))
        self._send({"error": {"code": 404, "message": f"the stand-in does not know {path}"}}, 404)

    def _send(self, answer: Any, status: int = 200) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if data is answer else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
