"""A Hugging Face hub in memory: the few requests that huggingface_hub sends to fetch files and to make commits."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(ThreadingHTTPServer):
    """Repository -> commits, newest last, each of them file -> bytes; and what was asked of it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.asked, self.tokens, self.private, self.says_size = {}, [], set(), {}, {}
        self.weights_from = None  # the address that requests for weights are sent on to

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo, changes):
        """Adds files to a repository, or changes them; None removes one."""
        commits = self.repos.setdefault(repo, {})
        files = {**(list(commits.values())[-1] if commits else {}), **changes}
        sha = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[sha] = {name: data for name, data in files.items() if data is not None}
        return sha

    def fetched(self):
        """The files that were sent."""
        return {path.split("/", 5)[5] for method, path in self.asked if method == "GET" and "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self):
        self.server.asked.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization"))

    def do_HEAD(self):
        self.note()
        if self.path == "/":
            return self.answer(200)
        owner, name, kind, *rest = [*self.path.strip("/").split("/"), "", ""][:-2]
        if kind != "resolve":
            return self.answer(404)
        commits = self.server.repos.get(f"{owner}/{name}")
        if commits is None:
            return self.answer(401, X_Error_Code="RepoNotFound")
        revision, file = rest[0], "/".join(rest[1:])
        sha = list(commits)[-1] if revision == "main" else revision
        if sha not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file not in commits[sha]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data = commits[sha][file]
        size = {"X_Linked_Size": self.server.says_size[file]} if file in self.server.says_size else {}
        about = {"X_Repo_Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', **size}
        if self.server.weights_from and file.endswith(".safetensors"):
            about |= {"Location": self.server.weights_from + self.path, "X_Linked_Size": len(data)}
            return self.answer(302, **about)
        return self.answer(200, data, **about)

    do_GET = do_HEAD

    def do_POST(self):
        self.note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            made = repo not in self.server.repos
            if made:
                self.server.repos[repo], self.server.private[repo] = {}, asked.get("visibility", asked.get("private"))
            return self.json({"url": f"{self.server.address}/{repo}"}, 200 if made else 409)
        if parts[1:] == ["validate-yaml"]:
            return self.json({})
        repo, verb = "/".join(parts[2:4]), parts[4]
        if verb == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.json({"files": [{**file, "shouldIgnore": False} for file in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {i["value"]["path"]: base64.b64decode(i["value"]["content"]) for i in lines if i["key"] == "file"}
        sha = self.server.commit(repo, added)
        return self.json({"commitUrl": f"{self.server.address}/{repo}/commit/{sha}", "commitOid": sha})

    def json(self, value, status=200):
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")
