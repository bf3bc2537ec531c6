"""The command lines of the load tests: what would check nothing is refused in a sentence, and is no success."""

import sys

import pytest
from served import listening, served

from loadtest import bench, clients, planted_faults


@pytest.mark.parametrize("only", ["F99", "F1,f3", "F2"])
def test_chaos_of_a_fault_that_is_not_in_the_run_starts_nothing(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["chaos", "--only", only]) == 2
    assert "is not in the run; these are: F1, F3" in capsys.readouterr().err


def test_planted_faults_without_a_check_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        planted_faults.main(["--times", "0"])
    assert "--times: there has to be one check at least" in capsys.readouterr().err


def test_planted_faults_without_a_server_end_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert planted_faults.main(["--server", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.startswith("planted_faults: No Diptych answers at http://127.0.0.1:9.")


def test_planted_faults_of_a_model_that_is_not_served_end_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(served()) as url:
        assert planted_faults.main(["--server", url, "--models", "toy-llava,nobody"]) == 2
    assert "planted_faults: nobody: not served here, or without a contract." in capsys.readouterr().err


def test_unknown_client_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["clients", "--only", "openai,opnai"])
    with pytest.raises(SystemExit, match="2"):
        clients.main()
    assert "--only: there is no client opnai; these are: openai, LangChain" in capsys.readouterr().err


def test_clients_of_which_none_is_installed_are_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clients", "--only", "ours"])
    monkeypatch.setattr(clients, "CLIENTS", {"ours": ("no-such-package", clients.openai_client)})
    assert clients.main() == 2
    assert "none of them is installed" in capsys.readouterr().err
