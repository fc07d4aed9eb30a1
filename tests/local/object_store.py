"""What a pre-staging Job talks to on EKS, on this machine: moto's S3, STS and IAM over HTTP, the
Pod Identity agent's credentials, and a file server that resumes, breaks off and lies on request."""

import contextlib
import hashlib
import http.client
import http.server
import json
import threading
from types import SimpleNamespace

ROLE = "ray-vllm-workshop-prestage"
BUCKET = "workshop-models"


@contextlib.contextmanager
def serving(handler):
    """An HTTP server of this machine alone; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


def client(service, address, **keys):
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", **keys}
    return boto3.client(service, endpoint_url=address, region_name="us-east-1", **keys)


@contextlib.contextmanager
def object_store():
    """moto's server with a bucket and two roles: the right one and a node's.

    Gives its address, a client `s3`, and `credentials(role)`: the answer of a Pod Identity agent.
    """
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    iam, sts = client("iam", address), client("sts", address)

    def credentials(role):
        arn = f"arn:aws:iam::123456789012:role/{role}"
        found = sts.assume_role(RoleArn=arn, RoleSessionName="eks-pod")["Credentials"]
        names = {"AccessKeyId": "AccessKeyId", "SecretAccessKey": "SecretAccessKey",
                 "SessionToken": "Token"}  # fmt: skip
        answer = {new: found[old] for old, new in names.items()}
        return {**answer, "Expiration": found["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ")}

    for role in (ROLE, "node"):
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    s3 = client("s3", address)
    s3.create_bucket(Bucket=BUCKET)
    try:
        yield SimpleNamespace(address=address, s3=s3, credentials=credentials)
    finally:
        server.stop()


def agent(store):
    """The Pod Identity agent's handler: /role gives that role's credentials, / the right ones."""

    class Agent(Quiet):
        def do_GET(self):
            body = json.dumps(store.credentials(self.path.strip("/") or ROLE)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Agent


class Files:
    """Files to download, and how the server treats each next request.

    Attributes:
        content: Path to bytes.
        moods: What happens to the next requests, in order: `hang:N` sends N bytes and then nothing
            until `released`; `break:N` sends N bytes and closes; `short:N` sends N bytes without
            ever saying how many there are; `whole` knows no Range; a number is an HTTP status.
        moods_of: How the paths begin that the moods are for.
        asked: (path, first byte asked for, Authorization), of each request.
        released: Lets those go that hang.
        on_hang: Called when one begins to.
    """

    def __init__(self):
        self.content, self.moods, self.asked, self.moods_of = {}, [], [], "/file"
        self.released = threading.Event()
        self.sent = threading.Event()
        self.on_hang = lambda: None

    def put(self, path, data):
        self.content[path] = data
        return hashlib.sha256(data).hexdigest()

    def handler(files):
        class Handler(Quiet):
            def do_GET(self):
                path = self.path.partition("?")[0]
                wanted = self.headers.get("Range", "bytes=0-")
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                files.asked.append((path, start, self.headers.get("Authorization")))
                mood = files.moods.pop(0) if files.moods and path.startswith(files.moods_of) else ""
                if isinstance(mood, int) or path not in files.content:
                    self.send_error(mood or 404)
                    return
                data = files.content[path]
                if mood == "whole":
                    start, mood = 0, ""
                if start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                kind, _, count = mood.partition(":")
                if kind != "short":
                    self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start : start + int(count)] if kind else data[start:])
                self.wfile.flush()
                if kind == "hang":
                    files.sent.set()
                    files.on_hang()
                    files.released.wait(60)
                self.close_connection = True

        return Handler


class Between:
    """A server before the object store, which lets through what it is told to.

    Attributes:
        address: The store's.
        seen: Method and path of each request.
        on_request: Called with a request's number, from 1, and `before` or `after` the store has
            done it; what it returns, if anything, is the status that is answered instead.
    """

    def __init__(self, address):
        self.address, self.seen, self.on_request = address, [], lambda number, when: None
        self.lock = threading.Lock()

    def handler(between):
        class Handler(Quiet):
            def forward(self):
                with between.lock:
                    between.seen.append((self.command, self.path))
                    number = len(between.seen)
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if status := between.on_request(number, "before"):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                host, port = between.address.removeprefix("http://").split(":")
                store = http.client.HTTPConnection(host, int(port), timeout=60)
                store.request(self.command, self.path, data, dict(self.headers))
                answer = store.getresponse()
                body = answer.read()
                store.close()
                between.on_request(number, "after")
                with contextlib.suppress(OSError):  # who asked may have been killed
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in (
                            "connection",
                            "transfer-encoding",
                            "server",
                            "date",
                        ):
                            self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        return Handler


def served_files():
    """A file server; in a test's module: `files = pytest.fixture(served_files)`."""
    found = Files()
    with serving(found.handler()) as found.address:
        yield found
        found.released.set()
