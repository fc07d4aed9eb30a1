"""What a pre-staging Job talks to, on this machine: moto's S3, STS and IAM over HTTP, the Pod
Identity agent's credentials, and a hub that breaks off and lies on request."""

import contextlib
import hashlib
import http.server
import json
import logging
import threading
import uuid

ROLE = "ray-vllm-workshop-prestage"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def client(service, address):
    """A client of moto's server, with keys that it does not ask for."""
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y"}
    return boto3.client(service, endpoint_url=address, region_name="us-east-1", **keys)


class Store:
    """moto's server with the right role and a node's; every test has a bucket of its own.

    All moto servers of a process share what they hold: one bucket for several tests is cleaned by
    one while another looks.
    """

    def __init__(self, address):
        self.address, self.bucket = address, ""
        self.s3, self.sts, self.iam = (client(name, address) for name in ("s3", "sts", "iam"))
        for role in (ROLE, "node"):
            with contextlib.suppress(self.iam.exceptions.EntityAlreadyExistsException):
                self.iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")

    def new_bucket(self):
        self.bucket = f"workshop-models-{uuid.uuid4().hex[:12]}"
        self.s3.create_bucket(Bucket=self.bucket)

    def listed(self):
        answer = self.s3.list_objects_v2(Bucket=self.bucket)
        return sorted(each["Key"] for each in answer.get("Contents", []))

    def read(self, key):
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def credentials(self, role):
        """The answer of a Pod Identity agent."""
        arn = f"arn:aws:iam::123456789012:role/{role}"
        found = self.sts.assume_role(RoleArn=arn, RoleSessionName="eks-pod")["Credentials"]
        answer = {name: found[name] for name in ("AccessKeyId", "SecretAccessKey")}
        ends = found["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ")
        return {**answer, "Token": found["SessionToken"], "Expiration": ends}


@contextlib.contextmanager
def object_store():
    """A `Store`; its `agent` gives the right role's credentials, `agent`/node a node's."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    store = Store("http://{}:{}".format(*server.get_host_and_port()))

    class Agent(Quiet):
        def do_GET(self):
            self.answer(json.dumps(store.credentials(self.path.strip("/") or ROLE)).encode())

    try:
        with serving(Agent) as store.agent:
            yield store
    finally:
        server.stop()


class Hub:
    """A Hugging Face hub with one model, `org/tiny`.

    Attributes:
        files: Name to content; those with weights are LFS files, with a published sha256.
        sums: Name to a sum that is published instead of the right one.
        hang_after: Bytes of the next weights after which nothing comes until `released`.
        asked: (name, first byte asked for), of each download.
        status, code: What is answered instead of the model, once set.
    """

    def __init__(self):
        self.files, self.sums, self.asked = {}, {}, []
        self.status, self.code = None, "RepoNotFound"
        self.hang_after, self.hung, self.released = None, threading.Event(), threading.Event()

    def listing(self):
        siblings = [{"rfilename": name} for name in self.files]
        return {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}

    def tree(self):
        found = []
        for name, data in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            each = {"type": "file", "path": name, "size": len(data)}
            each["oid"] = self.sums.get(name, git)
            if name.endswith(".safetensors"):
                sha256 = self.sums.get(name, hashlib.sha256(data).hexdigest())
                each["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            found.append(each)
        return found

    def handler(hub):
        class Handler(Quiet):
            def do_GET(self):
                path = self.path.partition("?")[0]
                if hub.status:
                    self.answer(b"", hub.status, X_Error_Code=hub.code)
                elif path.startswith("/api/models/org/tiny/tree/"):
                    self.answer(json.dumps(hub.tree()).encode())
                elif path.startswith("/api/models/org/tiny"):
                    self.answer(json.dumps(hub.listing()).encode())
                elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
                    self.file(path.rpartition("/")[2])
                else:
                    self.answer(b"", 404, X_Error_Code="RepoNotFound")

            do_HEAD = do_GET

            def file(self, name):
                data = hub.files[name]
                start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
                headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
                if self.command == "HEAD":
                    self.answer(data, **headers)
                    return
                hub.asked.append((name, start))
                stop = None
                if name.endswith(".safetensors"):
                    stop, hub.hang_after = hub.hang_after, None
                if start:
                    headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data[start:stop])
                self.wfile.flush()
                if stop is not None:
                    hub.hung.set()
                    hub.released.wait(600)
                    self.close_connection = True

        return Handler
