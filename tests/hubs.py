"""A hub of this process: an HTTP server with the part of the Hugging Face hub's API that downloads use."""
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote

COMMITS = ["1" * 40, "2" * 40]


class Hub:
    """Repositories by their names: revision -> commit, commit -> files. `state` changes what all requests are answered."""

    def __init__(self):
        self.clear()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def clear(self):
        self.refs, self.files, self.gated, self.state, self.requests = {}, {}, set(), 200, []

    def publish(self, name, folder, commit=COMMITS[0], refs=("main",), more=()):
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.files.setdefault(name, {})[commit] = {**files, **dict(more)}
        self.refs.setdefault(name, {}).update(dict.fromkeys(refs, commit))

    def fetched(self):
        """Names of the files that were asked for."""
        return sorted({path.partition("/resolve/")[2].partition("/")[2] for method, path in self.requests
                       if method == "GET" and "/resolve/" in path})

    def answer(self, request):
        path = unquote(request.path.partition("?")[0])
        self.requests.append((request.command, path))
        if self.state != 200:
            return self.send(request, self.state, b"down for today", {})
        found = (re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
                 or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/(.+)", path))
        if found is None or found[1] not in self.refs:
            return self.fail(request, 401, "RepoNotFound")
        name, kind, rest = found[1], found[2], found[3] or "main"
        if kind == "resolve":
            revision, _, file = rest.partition("/")
        else:
            revision, file = rest, None
        commit = revision if revision in self.files[name] else self.refs[name].get(revision)
        if commit is None:
            return self.fail(request, 404, "RevisionNotFound")
        files = self.files[name][commit]
        if file is None:
            if kind == "tree":
                body = [{"type": "file", "path": each, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for each, data in files.items()]
            else:
                body = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": each} for each in files]}
            return self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if name in self.gated:
            return self.fail(request, 403, "GatedRepo")
        if file not in files:
            return self.fail(request, 404, "EntryNotFound")
        return self.send(request, 200, files[file], {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": commit})

    def fail(self, request, status, code):
        self.send(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"})

    def send(self, request, status, body, headers):
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
