"""A config is read and checked before anything is started, and refused in one sentence."""

import argparse
import asyncio
import contextlib
import io
import os
import pickle
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from served import listening, plain, router

from deployments import config
from deployments.args import KEYS, Args, GatewayArgs, Listen
from deployments.config import ConfigError
from deployments.local import progress, start
from deployments.local.progress import Progress
from deployments.server.http_server import HttpServer
from serve.api.app import create_app
from serve.api.keys import new_key
from serve.limits import Limits
from serve.models import MODELS

HERE = Path(config.__file__).parent

TOYS = [MODELS["toy-llava"]]


@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml", "own.yaml"])
def test_shipped_configs_listen_on_loopback_and_name_known_models(name: str) -> None:
    loaded = config.read_config(HERE / name)
    assert loaded.host == "127.0.0.1" and loaded.logging["enable_access_log"] is False
    names = [model.name for model in loaded.args.models]
    assert [name for name in names if name in MODELS] == [name for name in MODELS if name in names]
    assert len(names) == 2 and (names[1] in MODELS or name == "own.yaml")


def test_models_are_in_catalogue_order() -> None:
    names = list(MODELS)
    assert [model.name for model in config.for_models([names[2], names[0]]).args.models] == [names[0], names[2]]


def test_models_on_a_gpu_share_the_memory() -> None:
    loaded = config.for_models(["llava-1.5-7b", "paligemma-3b-mix-448"], gpus=0.5).args.models
    assert [(model.num_gpus, model.engine_args) for model in loaded] == [(0.5, {})] * 2  # the engine sizes its part


def test_model_entry_may_be_a_name() -> None:
    assert Args.model_validate({"models": ["toy-llava"]}).models[0].replicas == 1


def test_images_policy_is_a_field_of_the_gateway() -> None:
    args = Args.model_validate({"models": ["toy-llava"], "gateway": {"images": {"allow": ["*.example.com"]}}})
    assert (args.gateway.images.allow, args.gateway.images.schemes) == (["*.example.com"], ["https"])
    with pytest.raises(ValueError, match="alow"):
        Args.model_validate({"models": ["toy-llava"], "gateway": {"images": {"alow": []}}})


def test_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no model 'gpt'.*Known:.*toy-llava.*paligemma-3b-mix-448"):
        config.for_models(["gpt"])


def test_repeated_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="Named twice: toy-llava"):
        config.for_models(["toy-llava", "toy-llava"])


TOY = yaml.dump({"applications": [{"import_path": config.APP, "args": {"models": ["toy-llava"]}}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "is not YAML"),
        (f"day: 2001-13-01\n{TOY}", "is not YAML: month must be in 1..12"),
        (f"yes: !!bool maybe\n{TOY}", "is not YAML"),
        (f"day: !!timestamp today\n{TOY}", "is not YAML"),
        ("[" * 3000, "is not YAML: maximum recursion depth exceeded"),
        (f"http_options: [host]\n{TOY}", "http_options: give keys and values."),
        (f"logging_config: JSON\n{TOY}", "logging_config: give keys and values."),
        ("[]", "needs one application with import_path deployments.app:build"),
        (yaml.dump({"applications": [{"import_path": "other:app"}]}), "needs one application"),
        (yaml.dump({"applications": [{"import_path": config.APP, "args": {}}]}), "models: Field required."),
        (
            yaml.dump(
                {"applications": [{"import_path": config.APP, "args": {"models": [{"name": "toy-llava", "n": 1}]}}]}
            ),
            "models.0 (toy-llava): n: there is no such field.",
        ),
    ],
)
def test_unusable_config_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.read_config(file)
    assert message in str(refused.value) and str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"- abc\n{TOY}", "is not YAML"),
        (TOY + "- abc\n", "applications: give each a name and an import_path."),
        (TOY + "- {name: other, import_path: other:app, args: {day: 2001-01-01}}\n", "date is not JSON serializable"),
        (f"a: &a [*a]\n{TOY}", "Circular reference"),
        (TOY + "- {name: other, import_path: other:app, args: {most: .inf}}\n", "not JSON compliant"),
    ],
)
def test_config_that_ray_cannot_be_sent_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.serve_config(text, "c.yaml")
    assert message in str(refused.value) and "c.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_config_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"# caf\xe9\n" + TOY.encode())
    with pytest.raises(ConfigError, match="is not UTF-8: invalid continuation byte at byte 5"):
        config.read_config(file)


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.read_config(tmp_path / "none.yaml")


class Unread(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_changed_config_is_read_though_the_output_is_a_dead_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(config=tmp_path / "none.yaml", models=None, host=None, port=None)
    old = config.for_models(["toy-llava"])
    monkeypatch.setattr(sys, "stdout", Unread())
    monkeypatch.setattr(sys, "stderr", Unread())
    assert start._changed(options, old) is old


@pytest.mark.parametrize("listen", [None, {"host": "0.0.0.0", "port": 8000}, {"port": 8000}])
@pytest.mark.parametrize("http", [None, {"host": "127.0.0.3", "port": 8003}])
@pytest.mark.parametrize(("host", "port"), [(None, None), ("127.0.0.1", None), (None, 8001), ("127.0.0.1", 8001)])
def test_options_then_listen_then_http_options_decide_where_gateways_listen(
    tmp_path: Path, listen: dict[str, Any] | None, http: dict[str, Any] | None, host: str | None, port: int | None
) -> None:
    args = {"models": ["toy-llava"], "gateway": {} if listen is None else {"listen": listen}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.dump({"http_options": http, "applications": [{"import_path": config.APP, "args": args}]}))
    chosen = start.chosen_config(argparse.Namespace(config=file, models=None, host=host, port=port))
    written = {"host": "127.0.0.1", "port": 8000, **((http or {}) if listen is None else listen)}
    assert (chosen.host, chosen.port) == (host or written["host"], port or written["port"])
    assert chosen.args.gateway.listen == Listen(host=chosen.host, port=chosen.port)


def test_port_in_use_is_refused_with_another_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert start.main(["--port", str(port)]) == 1
    printed = capsys.readouterr().err
    assert printed == (
        f"diptych: Port {port} on 127.0.0.1 is in use. Stop what listens there, or choose another: --port {port + 1}\n"
    )


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_server_on_an_ipv6_address_has_its_port_checked_and_is_reached_by_its_url(host: str) -> None:
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET  # :: takes the port of both
    with socket.create_server(("::1" if host == "::1" else "127.0.0.1", 0), family=family) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on {host} is in use"):
            start.check_free(host, port)
    start.check_free(host, port)
    server = HttpServer(plain(), host, port, GatewayArgs())
    url = start._url(config.for_models(["toy-llava"]).model_copy(update={"host": host, "port": port}))
    assert url == f"http://[::1]:{port}"
    assert (await asyncio.to_thread(progress.get_ready, url))["status"] == "ready"
    await server.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_address_of_another_machine_is_refused_in_a_sentence(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^Cannot listen on port 8000 of {host}: [\w ]+\.$"):
        start.check_free(host, 8000)


def test_impossible_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--port", "70000"]) == 1
    assert "must be between 1 and 65535" in capsys.readouterr().err


def test_suggested_command_names_an_image_that_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    command = start._command("http://127.0.0.1:8000", TOYS).split()
    assert command[1] == "ask" and (tmp_path / command[2]).resolve().is_file()
    assert "--server http://127.0.0.1:9" in start._command("http://127.0.0.1:9", TOYS)
    assert "--server 'http://[::1]:8000'" in start._command("http://[::1]:8000", TOYS)  # a shell's pattern


def test_progress_prints_each_step_once_without_a_terminal() -> None:
    out = io.StringIO()
    progress = Progress(["a", "b"], out)
    for step in ("downloading 1 of 9 MiB", "downloading 2 of 9 MiB", "ready"):
        progress.show({"a": step, "b": "no memory"}, {"a": "starting", "b": "failed"})
    lines = [line.split("  ")[-1] for line in out.getvalue().splitlines()]
    progress.show({"c": "it starts when it is asked"}, {"c": "asleep"})
    assert lines == ["a: downloading 1 of 9 MiB", "b: FAILED: no memory", "a: ready"]
    assert out.getvalue().endswith("c: asleep: it starts when it is asked\n")


def test_models_are_built_once_and_left_out_of_a_pickle() -> None:
    args = Args.model_validate({"models": ["toy-llava", {"name": "toy-paligemma", "engine": {"max_num_seqs": 2}}]})
    assert args.models_by_name is args.models_by_name
    copy = pickle.loads(pickle.dumps(args))
    assert copy == args and "models_by_name" not in vars(copy)
    assert list(copy.models_by_name) == ["toy-llava", "toy-paligemma"]
    assert Args.model_validate(args.model_dump(mode="json", by_alias=True, exclude_unset=True)) == args


@pytest.mark.parametrize(
    ("models", "groups", "message"),
    [
        ([{"name": "toy-llava", "group": "card"}], {}, r"toy-llava: group: there is no 'card'\. Groups: none"),
        (["toy-llava"], {"card": {"awake": 1}}, "groups: card has no models: give some `group: card`"),
        ([{"name": "toy-llava", "group": "card", "replicas": 2}], {"card": {"awake": 1}}, "has one replica"),
        (
            [{"name": name, "group": "card", "num_gpus": 0.6} for name in ("toy-llava", "toy-paligemma")],
            {"card": {"awake": 2}},
            "shares one GPU, and the 2 largest num_gpus of card are more",
        ),
        (
            [{"name": "toy-llava", "group": "card"}, {"name": "mine", "base": "toy-llava", "adapter": "/models/mine"}],
            {"card": {"awake": 1, "sleep_level": 2}},
            "sleep_level 2 would lose its LoRA adapters",
        ),
        ([{"name": "toy-llava", "group": "card"}], {"card": {"awake": 0}}, "greater than or equal to 1"),
        ([{"name": "toy-llava", "group": "a#b"}], {"a#b": {"awake": 1}}, "should match pattern"),
    ],
)
def test_impossible_group_is_refused(models: list[Any], groups: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Args.model_validate({"models": models, "groups": groups})


def test_group_reserves_the_sum_of_its_largest_models() -> None:
    sizes = {"toy-llava": 0.5, "toy-llava-b": 0.5, "toy-paligemma": 0.25, "toy-paligemma-b": 0}
    models = [{"name": name, "group": "card", "num_gpus": size} for name, size in sizes.items()]
    args = Args.model_validate({"models": models, "groups": {"card": {"awake": 2}}})
    assert args.group_gpus("card") == 1 and [entry.name for entry in args.members("card")] == list(sizes)
    assert args.needed_gpus() == {**dict.fromkeys(sizes, 0.3333), "toy-paligemma-b": 0}


def gateway(**given: Any) -> GatewayArgs:
    return GatewayArgs.model_validate(given)


def test_keys_are_read_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    assert gateway().access().keys is None and not gateway().asks_for_keys()
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{new_key('alice')[1]}\n")
    monkeypatch.setenv(KEYS, "bob:b0b,carol:car0l")
    access = gateway(keys_file=str(file), page="open").access()
    assert access.keys is not None and sorted(access.keys.names) == ["alice", "bob", "carol"]
    assert (access.page, access.metrics) == ("open", "key")


PARTS = {"spans_nodes": True, "num_gpus": 4, "engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_gpus": 2}, "num_gpus is 2; it must be 2 or more, and engine: tensor_parallel_size by"),
        ({"num_gpus": 1, "engine": {}}, "num_gpus is 1; it must be 2 or more"),
        ({"max_replicas_per_node": 1}, "max_replicas_per_node: leave it out"),
        ({"group": "card"}, "a group shares one GPU"),
        (
            {"engine": {"tensor_parallel_size": 4, "distributed_executor_backend": "mp"}},
            "must be ray where it spans nodes",
        ),
    ],
)
def test_impossible_span_of_nodes_is_refused(more: dict[str, Any], message: str) -> None:
    args = {"models": [{"name": "toy-llava", **PARTS, **more}], "groups": {"card": {"awake": 1}}}
    if "group" not in more:
        del args["groups"]
    with pytest.raises(ValueError, match=message):
        Args.model_validate(args)


def test_model_that_spans_nodes_reserves_a_bundle_for_each_gpu() -> None:
    args = Args.model_validate({"models": [{"name": "toy-llava", **PARTS, "resources": {"large": 1}, "num_cpus": 3}]})
    first, *others = args.engines()["toy-llava"].bundles()
    assert first == {"CPU": 3, "GPU": 1, "large": 1} and others == [{"GPU": 1, "large": 1}] * 3


@pytest.mark.parametrize("value", ["", " , ", "alice", "a:1,a:2"])
def test_unusable_keys_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, value)
    with pytest.raises(ValueError, match="API key"):
        gateway().access()


def test_missing_keys_file_is_refused_at_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    args = {"models": ["toy-llava"], "gateway": {"keys_file": str(tmp_path / "none")}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.dump({"applications": [{"import_path": config.APP, "args": args}]}))
    assert start.main(["--config", str(file)]) == 1
    assert "The API keys cannot be used" in capsys.readouterr().err


def test_rate_limits_without_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    with pytest.raises(ValueError, match="keys_file"):
        gateway(requests_at_once=4).access()


def test_gateway_has_every_limit_as_a_setting() -> None:
    assert gateway().limits() == Limits()
    limits = dict.fromkeys(Limits.model_fields, 3)
    assert gateway(**limits).limits() == Limits(**limits)


@pytest.mark.parametrize("megabytes", [0, 64, 127, -1])
def test_too_small_memory_budget_is_refused(megabytes: int) -> None:
    assert gateway().memory_mb is None and gateway(memory_mb=128).memory_mb == 128
    with pytest.raises(ValueError, match="memory_mb"):
        gateway(memory_mb=megabytes)


def test_progress_asks_with_a_key_of_its_own_where_keys_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "alice:4lice")
    key = start._own_key(config.for_models(["toy-llava"]))
    assert key is not None and key not in os.environ[KEYS]
    app = create_app(router(), access=gateway().access())
    with listening(app) as url:
        assert progress.get_ready(url, key)["status"] == "ready" and "models" not in progress.get_ready(url)
    monkeypatch.delenv(KEYS)
    assert start._own_key(config.for_models(["toy-llava"])) is None


def test_start_after_a_restart_replaces_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, new_key("alice")[1])
    before, after = (start._own_key(config.for_models(["toy-llava"])) for _ in range(2))
    keys = gateway().access().keys
    assert keys is not None and keys.names == ["alice", f"start-{os.getpid()}"]
    owners = [keys.owner([(b"authorization", f"Bearer {key}".encode())]) for key in (before, after)]
    assert owners == [None, f"start-{os.getpid()}"]


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["name", "like", "base", "adapter", "checkpoint", "replicas", "num_gpus", "engine", "simulate", "tasks"]
                + [
                    "models",
                    "gateway",
                    "listen",
                    "images",
                    "cors",
                    "autoscaling",
                    "drain_s",
                    "prompts",
                    "card",
                    "weight",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({"models": ANYTHING, "gateway": ANYTHING}), ANYTHING)
def test_any_config_is_accepted_or_refused_in_a_sentence(arguments: object, other: object) -> None:
    for args in (arguments, other):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"applications": [{"import_path": config.APP, "args": args}]}, file)
            file.flush()
            try:
                config.read_config(Path(file.name))
            except config.ConfigError as refused:
                assert len(str(refused).splitlines()) == 1


def test_emptied_keys_file_refuses_all_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    file = tmp_path / "keys"
    for text in ("", "\n\n", "# alice has left\n"):
        file.write_text(text)
        keys = gateway(keys_file=str(file)).access().keys
        assert keys is not None and keys.names == []
    for text in ("alice", "alice:sha256:12", b"\xff\xfe"):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError):
            gateway(keys_file=str(file)).access()


@pytest.mark.parametrize(
    ("host", "keys", "names", "hosts"),
    [
        ("127.0.0.1", False, [], frozenset()),
        ("::1", False, [], frozenset()),
        ("localhost", False, ["vision.example.com"], frozenset({"vision.example.com"})),
        ("0.0.0.0", False, [], None),
        ("0.0.0.0", False, ["a.example"], frozenset({"a.example"})),
        ("127.0.0.1", True, [], None),
        (None, False, [], None),
    ],
)
def test_hosts_are_checked_on_loopback_without_keys_or_where_named(
    host: str | None, keys: bool, names: list[str], hosts: frozenset[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    if keys:
        monkeypatch.setenv(KEYS, "alice:4lice")
    listen = None if host is None else {"host": host, "port": 8000}
    assert gateway(listen=listen, hosts=names).access().hosts == hosts


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("10.1.2.3", "", True),
        ("127.0.0.1", "", False),
        ("localhost", "", False),
    ]
    + [("0.0.0.0", "alice:4lice", False), (None, "", False)],
)
def test_open_server_without_keys_is_warned_of(
    host: str | None, keys: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    if keys:
        monkeypatch.setenv(KEYS, keys)
    warning = gateway(listen=None if host is None else {"host": host, "port": 8123}).warning()
    assert (warning is not None) == warned
    assert warning is None or ("8123" in warning and "diptych keys add" in warning)
