"""A hub and a code host in one for test/download, on a free port of the loopback: python3 test/hub_stub.py ROOT.

ROOT/github/OWNER/NAME/COMMIT/PATH   raw files, by the same path
ROOT/hub/datasets/REPO/PATH          files of a data set; of a model without datasets/. Fetched at /REPO/resolve/REVISION/PATH,
                                     which redirects to another host (localhost for 127.0.0.1), as the hub does for large files
ROOT/api/models/REPO.json            what /api/models/REPO/revision/REVISION?blobs=true answers
ROOT/log                             a line a request: path, range, status, and whether there was a token
ROOT/port                            the port, when it listens
Files in ROOT that change what it does: cut (the next answer ends after that many bytes), dies (so do the next, and those
behind it after none), slow (a pause after each 500 bytes), no-ranges, gated (repositories that want the token "good"). A
token that reaches the redirect's target or raw files answers 400: it was sent to somebody that it is not for.
"""
import http.server
import os
import re
import sys
import time

ROOT = sys.argv[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def state(name):
    path = os.path.join(ROOT, name)
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return f.read().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", headers=()):
        token = "token" if "Authorization" in self.headers else "-"
        with open(os.path.join(ROOT, "log"), "a") as f:
            f.write(f"{self.path} {self.headers.get('Range', '-')} {status} {token}\n")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = len(body)
        if status in (200, 206) and state("cut") is not None:
            end = int(state("cut"))
            os.remove(os.path.join(ROOT, "cut"))
        if status in (200, 206) and state("dies") is not None:
            end = int(state("dies"))
            with open(os.path.join(ROOT, "dies"), "w") as f:
                f.write("0")
        step = 500 if state("slow") is not None else len(body) + 1
        for at in range(0, end, step):
            self.wfile.write(body[at:min(end, at + step)])
            if step == 500:
                self.wfile.flush()
                time.sleep(0.05)
        self.close_connection = True

    def send_file(self, path):
        if not os.path.isfile(path):
            return self.answer(404, b"Entry not found")
        with open(path, "rb") as f:
            body = f.read()
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not begin or state("no-ranges") is not None:
            return self.answer(200, body)
        at = int(begin.group(1))
        if at >= len(body):
            return self.answer(416, b"", [("Content-Range", f"bytes */{len(body)}")])
        self.answer(206, body[at:], [("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")])

    def do_GET(self):
        path = self.path.split("?")[0]
        token = self.headers.get("Authorization")
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/revision/([^/]+)", path)
        resolve = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if path.startswith(("/cdn/", "/raw/")):
            if token:
                return self.answer(400, b"a token that is not for this host")
            return self.send_file(ROOT + path.replace("/cdn/", "/hub/", 1).replace("/raw/", "/github/", 1))
        if api:
            return self.send_file(f"{ROOT}/api/{api.group(1)}.json")
        if not resolve:
            return self.answer(404)
        repository, revision, name = resolve.groups()
        if repository in (state("gated") or "").split():
            if token is None:
                return self.answer(401, b"Access is restricted", [("X-Error-Code", "GatedRepo")])
            if token != "Bearer good":
                return self.answer(403, b"not in the list")
        if not os.path.isfile(f"{ROOT}/hub/{repository}/{name}"):
            return self.answer(404, b"Entry not found")
        port = self.server.server_address[1]
        self.answer(302, b"", [("Location", f"http://localhost:{port}/cdn/{repository}/{name}"), ("X-Repo-Commit", COMMIT)])


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
with open(os.path.join(ROOT, "port.partial"), "w") as f:
    f.write(str(server.server_address[1]))
os.rename(os.path.join(ROOT, "port.partial"), os.path.join(ROOT, "port"))
server.serve_forever()
