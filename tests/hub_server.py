"""A server that has the part of the Hugging Face hub that is used: models, their uploads, and downloads."""

import base64
import contextlib
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from local_server import LocalServer

TOKEN = "hf_canary4711secretkeyOfTheStub"


class HubServer:
    """Repositories by name: ``{"private": bool, "files": {name: bytes}, "card": {...}}``."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Begin anew."""
        self.repositories = {}
        self.objects = {}  # content of large files by their SHA-256, committed or not
        self.requests = []
        self.puts = []  # SHA-256 of what was sent
        self.fault = lambda method, path: None  # -> a status, with which the request fails
        self.readers = {TOKEN}
        self.writers = {TOKEN}
        self._number = 0

    def add(self, name, files, *, private=False, tags=()):
        self.repositories[name] = {"private": private, "files": dict(files), "tags": list(tags), "commits": []}
        self._commit(name, "added")

    def _commit(self, name, message):
        self._number += 1
        self.repositories[name]["sha"] = f"{self._number:040x}"
        self.repositories[name]["commits"].append(message)

    def info(self, name):
        repository = self.repositories[name]
        siblings = [
            {"rfilename": file, "size": len(content), "blobId": git_oid(content)}
            for file, content in sorted(repository["files"].items())
        ]
        common = {"id": name, "modelId": name, "private": repository["private"], "tags": repository["tags"]}
        return {**common, "sha": repository["sha"], "siblings": siblings, "_id": name}

    def tree(self, name):
        files = self.repositories[name]["files"]
        return [
            {"type": "file", "path": file, "size": len(content), "oid": git_oid(content)}
            for file, content in sorted(files.items())
        ]

    def commit(self, name, lines):
        files = self.repositories[name]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._commit(name, next(line["value"]["summary"] for line in lines if line["key"] == "header"))
        return self.repositories[name]["sha"]


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=None):
        said = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self.answer(status, {"error": message}, **said)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        path, content = unquote(self.path.partition("?")[0]), self.body()
        self.hub.requests.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if (status := self.hub.fault(self.command, path)) is not None:
            self.refuse(status, f"no: {token}")
        elif path == "/":
            self.answer(200)
        elif path.startswith("/objects/"):
            self.hub.puts.append(oid := path.rpartition("/")[2])
            self.hub.objects[oid] = content
            self.answer(200)
        elif token and token not in self.hub.readers:
            self.refuse(401, f"Invalid credentials in Authorization header: {token}")
        elif self.command == "POST" and token not in self.hub.writers:
            self.refuse(403, "You do not have write access")
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(content))
        elif path.startswith("/api/") and not path.startswith("/api/models/"):
            self.refuse(404, "Not found")
        else:
            self.of_repository(path, content, token)

    def create(self, given):
        name = f"{given['organization']}/{given['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"url": f"{self.place}/{name}"})
        attributes = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.hub.add(name, attributes, private=given.get("visibility") == "private")
        return self.answer(200, {"url": f"{self.place}/{name}", "name": name})

    def of_repository(self, path, content, token):
        name, rest = split(path)
        repository = self.hub.repositories.get(name)
        if repository is None or (repository["private"] and not token):
            return self.refuse(404, "Repository not found", "RepoNotFound")
        if rest in ("", "revision/main", f"revision/{repository['sha']}"):
            return self.answer(200, self.hub.info(name))
        part = rest.partition("/")[0]
        methods = {"tree": self.tree, "preupload": self.preupload, "lfs": self.lfs, "commit": self.commit}
        if part == "resolve":
            return self.resolve(repository, rest.split("/", 2)[2])
        return methods[part](name, content)

    def tree(self, name, _):
        self.answer(200, self.hub.tree(name))

    def preupload(self, name, content):
        files = self.hub.repositories[name]["files"]
        modes = []
        for path in (file["path"] for file in json.loads(content)["files"]):
            is_large = path.endswith((".safetensors", ".faiss", ".parquet"))
            oid = None
            if path in files:
                oid = hashlib.sha256(files[path]).hexdigest() if is_large else git_oid(files[path])
            mode = "lfs" if is_large else "regular"
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": modes})

    def lfs(self, _, content):
        objects = []
        for each in json.loads(content)["objects"]:
            href = {"actions": {"upload": {"href": f"{self.place}/objects/{each['oid']}"}}}
            there = each["oid"] in self.hub.objects
            objects.append({"oid": each["oid"], "size": each["size"], **({} if there else href)})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name, content):
        sha = self.hub.commit(name, [json.loads(line) for line in content.splitlines()])
        self.answer(200, {"commitUrl": f"{self.place}/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, repository, file):
        content = repository["files"].get(file)
        if content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        return self.answer(200, content, X_Repo_Commit=repository["sha"], ETag=f'"{git_oid(content)}"')

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    @property
    def place(self):
        return f"http://127.0.0.1:{self.server.server_port}"


def split(path):
    """The name of a repository, and what of it a path means."""
    if path.startswith("/api/models/"):
        owner, name, *rest = path.removeprefix("/api/models/").split("/", 2)
        return f"{owner}/{name}", "".join(rest)
    if path.endswith(".git/info/lfs/objects/batch"):
        return path.removeprefix("/").removesuffix(".git/info/lfs/objects/batch"), "lfs"
    owner, name, *rest = path.removeprefix("/").split("/", 2)
    return f"{owner}/{name}", "".join(rest)


@contextlib.contextmanager
def serving():
    """A started `HubServer` with its address as `url`."""
    hub = HubServer()
    with LocalServer(type("Handler", (_Handler,), {"hub": hub})) as local:
        hub.url = local.url
        yield hub
