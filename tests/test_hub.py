"""Uploads to a hub of our own on localhost, by the real client: what arrives, and what is never sent or overwritten."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from opd import distributed
from opd.config import Recipe
from opd.distributed import Ranks
from opd.errors import HubError, RecipeError, UploadError
from opd.hub import HubSettings, check_access, check_base, push
from tests import cases


class Hub(HTTPServer):
    """As much of the hub as an upload meets: repos {name: {path: bytes}}, of user ann and organisation lab."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.created: list[dict[str, Any]] = []
        self.role, self.breaks, self.meanwhile = "write", False, None
        self.address = f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("whoami-v2"):
            if self.headers["Authorization"] != "Bearer good":
                return self.answer({"error": "Invalid credentials"}, 401)
            token = {"accessToken": {"role": self.server.role}}
            return self.answer({"name": "ann", "orgs": [{"name": "lab"}], "auth": token})
        repo = self.path.removeprefix("/api/models/")
        if repo not in self.server.repos:
            return self.answer({"error": "Repository not found"}, 404, "RepoNotFound")
        files, siblings = self.server.repos[repo], [{"rfilename": f} for f in self.server.repos[repo]]
        private = repo not in self.server.public
        self.answer({"id": repo, "sha": f"{len(files):040x}", "siblings": siblings, "private": private})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("repos/create"):
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            self.server.created.append(asked)
            if asked.get("private") is False or asked.get("visibility") == "public":
                self.server.public.add(repo)
            self.server.repos[repo] = {".gitattributes": b""}
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}", "name": repo, "id": repo})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "/commit/" in self.path:
            return self.commit(self.path.removeprefix("/api/models/").split("/commit/")[0], body)
        self.answer({"errors": [], "warnings": []})

    def commit(self, repo: str, body: bytes) -> None:
        files = self.server.repos[repo] | (self.server.meanwhile or {})
        lines = [json.loads(line) for line in body.splitlines()]
        if self.server.breaks or lines[0]["value"]["parentCommit"] != f"{len(files):040x}":
            return self.answer({"error": "The hub is on fire"}, 412)
        for line in lines[1:]:
            files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.server.repos[repo] = files
        url = f"http://{self.headers['Host']}/{repo}/commit/{'1' * 40}"
        self.answer({"commitUrl": url, "commitOid": "1" * 40, "pullRequestUrl": None})

    def answer(self, said: dict[str, Any], code: int = 200, error: str | None = None) -> None:
        body = json.dumps(said).encode()
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the context lasts."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serving() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "good")
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run: an adapter, merged too, and a best student."""
    for name in ("model", "model/merged", "best"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "README.md").write_text(f"# {name}")
    (tmp_path / "mine" / "model" / "adapter_config.json").write_text("{}")
    recipe = {"student": {"model": "some/student", "lora": {"rank": 2, "merge": True}}}
    (tmp_path / "mine" / "summary.json").write_text(json.dumps({"recipe": recipe}))
    return tmp_path / "mine"


def test_a_new_repository_gets_the_part_and_nothing_else(hub: Hub, run: Path):
    assert push(run, HubSettings(repo="ann/tiny")).endswith("/ann/tiny")
    files = hub.repos["ann/tiny"]
    assert files.keys() == {".gitattributes", "README.md", "adapter_config.json"} and files["README.md"] == b"# model"
    assert [asked.get("private") or asked.get("visibility") for asked in hub.created] in ([True], ["private"])
    push(run, HubSettings(repo="lab/merged", part="merged", private=False))
    push(run, HubSettings(repo="ann/best", part="best"))
    assert hub.repos["lab/merged"]["README.md"] == b"# model/merged" and hub.repos["ann/best"]["README.md"] == b"# best"
    assert hub.created[1].get("private") is False or hub.created[1].get("visibility") == "public"


def test_an_adapter_of_a_local_folder_is_not_uploaded(hub: Hub, run: Path):
    summary = run / "summary.json"
    summary.write_text(summary.read_text().replace("some/student", str(run)))
    with pytest.raises(HubError, match=r"is an adapter of .*, a local folder, beside which nobody else can load it"):
        push(run, HubSettings(repo="ann/tiny"))
    assert hub.created == []
    push(run, HubSettings(repo="ann/tiny", part="merged"))
    with pytest.raises(HubError, match="is an adapter"):
        check_base(HubSettings(repo="ann/x"), str(run), adapted=True)
    check_base(HubSettings(repo="ann/x"), str(run), adapted=False)


def test_what_is_there_is_never_overwritten(hub: Hub, run: Path):
    hub.repos |= {"ann/full": {".gitattributes": b"", "model.safetensors": b"theirs"}, "ann/empty": {}}
    before = dict(hub.repos["ann/full"])
    for refused in (check_access, lambda settings: push(run, settings)):
        with pytest.raises(HubError, match=r"'ann/full' on the hub holds model\.safetensors already"):
            refused(HubSettings(repo="ann/full"))
    assert hub.repos["ann/full"] == before and hub.created == []
    push(run, HubSettings(repo="ann/empty"))
    assert "adapter_config.json" in hub.repos["ann/empty"] and hub.created == []


def test_nothing_goes_into_an_empty_repository_that_others_see_unless_it_may(hub: Hub, run: Path):
    hub.repos |= {"ann/seen": {}, "ann/own": {}}
    hub.public.add("ann/seen")
    for repo, private, words in (
        ("ann/seen", True, "is public.* be private"),
        ("ann/own", False, "is private.* be public"),
    ):
        for refused in (check_access, lambda settings: push(run, settings)):
            with pytest.raises(HubError, match=f"'{repo}' on the hub {words}"):
                refused(HubSettings(repo=repo, private=private))
    push(run, HubSettings(repo="ann/seen", private=False))
    assert hub.repos["ann/own"] == {} and hub.repos["ann/seen"].keys() > {"README.md"}


def test_what_was_written_meanwhile_is_not_overwritten_either(hub: Hub, run: Path):
    hub.meanwhile = {"README.md": b"somebody else's"}
    with pytest.raises(UploadError, match="was not uploaded"):
        push(run, HubSettings(repo="ann/raced"))
    assert "adapter_config.json" not in hub.repos["ann/raced"]


def test_an_upload_that_breaks_off_says_what_goes_on_and_that_does(hub: Hub, run: Path):
    hub.breaks = True
    with pytest.raises(UploadError) as error:
        push(run, HubSettings(repo="ann/late", part="merged", private=False))
    assert f"`opd push {run} ann/late --part merged --public` goes on" in str(error.value)
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    hub.breaks = False
    push(run, HubSettings(repo="ann/late", part="merged", private=False))
    assert hub.repos["ann/late"]["README.md"] == b"# model/merged"


@pytest.mark.parametrize(
    ("token", "role", "repo", "words"),
    [
        (None, "write", "ann/x", ["hf auth login", "'ann/x'", "opd push"]),
        ("bad", "write", "ann/x", ["Invalid user token", "hf auth login"]),
        ("good", "read", "ann/x", ["'ann' only reads"]),
        ("good", "write", "bob/x", ["'ann' can't upload 'bob/x'", "ann/… or lab/…"]),
    ],
)
def test_who_may_not_write_is_told_before_the_run(token, role, repo, words, hub: Hub, monkeypatch, tmp_path: Path):
    hub.role = role
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(HubError) as error:
        check_access(HubSettings(repo=repo))
    assert all(word in str(error.value) for word in words), error.value
    assert error.value.exit_code == 2 and hub.repos == {}


def test_without_a_network_that_is_said(hub: Hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"(?i)can't log in .*offline"):
        check_access(HubSettings(repo="ann/x"))


def test_an_unfinished_run_or_a_part_that_is_not_there_is_not_uploaded(hub: Hub, run: Path):
    (run / "best" / "README.md").unlink()
    (run / "best").rmdir()
    with pytest.raises(HubError, match="has no best/"):
        push(run, HubSettings(repo="ann/x", part="best"))
    (run / "summary.json").unlink()
    with pytest.raises(HubError, match="no finished run"):
        push(run, HubSettings(repo="ann/x"))
    assert hub.created == []


@pytest.mark.parametrize(
    "settings", [{"repo": "x"}, {"repo": "a/b/c"}, {"repo": "a/b", "part": "merged"}, {"repo": "a/b", "part": "best"}]
)
def test_a_recipe_can_not_ask_for_what_there_will_not_be(settings: dict[str, str]):
    with pytest.raises(RecipeError, match="hub"):
        cases.recipe(hub=settings)


def test_a_recipe_asks_for_what_there_will_be():
    lora = {"lora": {"merge": True}, "model": "s"}
    merged: Recipe = cases.recipe(student=lora, hub={"repo": "a/b", "part": "merged"})
    assert merged.hub.private and cases.recipe().hub is None
    assert cases.recipe(evaluate={"task": "gsm8k", "every": 2}, hub={"repo": "a/b", "part": "best"}).hub.part == "best"


def test_rank_0_alone_uploads_when_a_run_ends(monkeypatch):
    """After every rank has come to the end: an upload may outlast any collective's patience."""
    done = []

    class Two(Ranks):
        def barrier(self) -> None:
            done.append("met")

    monkeypatch.setattr("os._exit", lambda code: done.append(code))
    for index in (0, 1):
        ranks = Two()
        ranks.index, ranks.count = index, 2
        distributed.leave(ranks, last=lambda: done.append("uploaded"))
    assert done == ["met", "uploaded", 0, "met", 0]
