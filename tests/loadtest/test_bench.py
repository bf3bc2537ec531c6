"""The command lines of the load tests: what would check nothing is refused in a sentence, and is no success."""

import importlib
import sys
from argparse import ArgumentParser

import pytest
from served import listening, served

from loadtest import bench, clients, planted_faults


@pytest.mark.parametrize("only", ["F99", "F1,f3", "F2"])
def test_chaos_of_a_fault_that_is_not_in_the_run_starts_nothing(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["chaos", "--only", only]) == 2
    assert "is not in the run; these are: F1, F3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--sides A,X", "'X' is none of A, B"),
        ("--sides ,", "there has to be one value at least"),
        ("--clients x", "'x' is no whole number of 1 or more"),
        ("--rates 0", "'0' is no number above 0"),
        ("--rounds 0", "'0' is no whole number of 1 or more"),
        ("--long -1", "'-1' is no whole number of 0 or more"),
        ("--previous /nowhere", "'/nowhere' is no checkout of Diptych"),
        ("many-servers --models 5", "'5' is no whole number of 1 to 4"),
        ("many-servers --sizes 3x", "'3x' is none of 1x, 2mp, 12mp"),
        ("many-servers --doors x", "'x' is none of task, chat"),
        ("fan-out --models 0", "'0' is no whole number of 1 or more"),
        ("scale --replicas x", "'x' is no whole number of 1 or more"),
        ("gateways --sizes 1", "'' is no whole number of 1 or more"),
        ("gateways --sizes 0x1", "'0' is no whole number of 1 or more"),
        ("gateways --rate nan", "'nan' is no number above 0"),
        ("turns --models 1", "'1' is no whole number of 2 or more"),
        ("turns --every 0", "'0' is no number above 0"),
        ("repeats --rounds x", "'x' is no whole number of 1 or more"),
        ("same-answers --previous . --tasks fly", "'fly' is none of"),
        ("soak --rate 0", "'0' is no number above 0"),
        ("store --part 0", "'0' is no whole number of 1 or more"),
        ("batch --scenes 1", "'1' is no whole number of 100 or more"),
    ],
)
def test_option_that_makes_no_sense_is_refused_before_a_server_starts(
    line: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(line.split())
    assert why in capsys.readouterr().err


def test_benchmark_without_a_load_starts_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--sides", "A", "--clients=", "--rates=", "--long", "0", "--large", "0"]) == 2
    assert "nothing is left to measure" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["compare", *bench.KINDS])
def test_default_of_every_option_is_taken_as_a_value(kind: str) -> None:
    benchmark = importlib.import_module(f"loadtest.{kind.replace('-', '_')}")
    parser = ArgumentParser()
    benchmark.options(parser)
    parser.parse_args(["--previous", "."] if kind == "same-answers" else [])


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
