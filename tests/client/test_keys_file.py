"""The commands that keep a keys file: it is replaced as a whole, readable by its owner alone."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest

from serve import cli
from serve.api.keys import Keys, parse_entries

NO_TERMINAL = io.StringIO


def run(*arguments: object) -> int:
    return cli.main(["keys", *map(str, arguments)])


def kept(file: Path) -> Keys:
    return Keys(parse_entries(file.read_text()), may_be_none=True)


def test_added_key_is_in_the_file_which_its_owner_alone_may_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nbob:in-plain-text")
    file.chmod(0o644)
    given = ["--models", "a,b", "--tasks", "vqa", "--expires", "2999-01-31", "--limit", "requests_per_minute=60"]
    assert run("add", "alice", "--file", file, *given) == 0
    key, notice = capsys.readouterr()
    keys = kept(file)
    assert keys.owner([(b"authorization", b"Bearer " + key.strip().encode())]) == "alice"
    assert (keys.rights["alice"].scopes, keys.rights["alice"].models) == (("ask",), ("a", "b"))
    assert keys.limits["alice"] == {"requests_per_minute": 60} and keys.names == ["bob", "alice"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text().startswith("# ours\n")
    assert key.strip() not in notice and key.strip() not in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alice"], "two API keys of the name alice"),
        (["no name"], "cannot be a key's name"),
        (["bob", "--tasks", "paint"], "there is no 'paint'"),
        (["bob", "--limit", "requests=3"], "followed by each of"),
    ],
)
def test_wrong_key_is_refused_and_the_file_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "keys"
    assert run("add", "alice", "--file", file) == 0
    before = file.read_text()
    assert run("add", *arguments, "--file", file) == 2
    assert message in capsys.readouterr().err and file.read_text() == before


def test_revoked_key_is_gone_and_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("# alice: ours\nalice:1,bob:2\ncarol:3\n")
    assert run("revoke", "alice", "--file", file) == 0 and run("revoke", "carol", "--file", file) == 0
    assert file.read_text() == "# alice: ours\nbob:2\n"
    assert run("revoke", "alice", "--file", file) == 2
    assert "no key of the name alice" in capsys.readouterr().err


def test_list_shows_rights_and_no_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    run("add", "alice", "--file", file, "--scopes", "ask,admin", "--expires", "2020-01-01", "--limit", "max_models=2")
    capsys.readouterr()
    assert run("list", "--file", file) == 0
    printed = capsys.readouterr().out
    assert "alice" in printed and "admin" in printed and "max_models=2" in " ".join(printed.split())
    assert file.read_text().split(":")[2] not in printed
    assert run("list", "--file", tmp_path / "nowhere") == 1 and "No such file" in capsys.readouterr().err


def test_foreign_key_gets_its_entry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a-key-of-another-program-1"
    monkeypatch.setattr("sys.stdin", NO_TERMINAL(f"{key}\n"))
    assert run("hash", "alice", "--scopes", "scrape") == 0
    keys = Keys([capsys.readouterr().out.strip()])
    assert keys.owner([(b"authorization", f"Bearer {key}".encode())]) == "alice"
    assert keys.rights["alice"].scopes == ("scrape",)


def test_keys_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file, names = tmp_path / "keys", [f"key-{i}" for i in range(8)]
    threads = [threading.Thread(target=run, args=("add", name, "--file", file)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept(file).names) == names


def test_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "keys").symlink_to("real")
    assert run("add", "alice", "--file", tmp_path / "keys") == 0
    assert os.readlink(tmp_path / "keys") == "real" and kept(tmp_path / "real").names == ["alice"]
