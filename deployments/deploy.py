"""Sends a Serve config to a running Ray, as `serve deploy` does, with an application for each model.

`diptych deploy FILE` says what starts, changes in place and ends, then follows it; `--dry-run` only says it, and
`--print` writes the config that Ray, or a RayService's `serveConfigV2`, takes.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.config import ConfigError, read_text, serve_config

PATH = "/api/serve/applications/"
EVERY_S = 1.0
ENDED = ("RUNNING", "DEPLOY_FAILED")


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy a config. Return 0 once all of it runs, 1 where a part cannot, with a sentence on stderr."""
    parser = argparse.ArgumentParser("diptych deploy", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("config", type=Path, metavar="FILE", help="a Serve config, as for diptych serve --config")
    where = os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument("--address", default=where, metavar="URL", help=f"Ray's dashboard; default {where}")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    only.add_argument("--print", action="store_true", help="write the config that Ray takes, and send nothing")
    options = parser.parse_args(argv)
    try:
        if options.print:
            print(printed(options.config), end="")
            return 0
        config = serve_config(read_text(options.config), str(options.config))
        token = os.environ.get("RAY_AUTH_TOKEN")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=options.address, headers=headers, timeout=30) as ray:
            return follow(ray, config, options.dry_run)
    except KeyboardInterrupt:
        return 130
    except ConfigError as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    except httpx.HTTPStatusError as error:
        reply = error.response
        print(f"diptych: Ray refused ({reply.status_code}): {' '.join(reply.text.split())[:1000]}", file=sys.stderr)
        return 1
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the last: what answers writes no JSON
        print(f"diptych: Ray's dashboard at {options.address} does not answer: {error}", file=sys.stderr)
        return 1


def printed(file: Path) -> str:
    """Return the config that Ray takes for the one in a file, as YAML. Raises ConfigError."""
    config = serve_config(read_text(file), str(file))
    head = f"# Made of {file.name} by `diptych deploy --print`: change that, and write this again.\n"
    return head + yaml.safe_dump(config, sort_keys=False, width=120)


def follow(ray: httpx.Client, config: Mapping[str, Any], dry_run: bool) -> int:
    """Say what a config changes and, but for a dry run, send it and say what comes of it. Return the exit status."""
    now = _applications(ray)
    for line in changes({name: app.get("deployed_app_config") or {} for name, app in now.items()}, config):
        print(line, flush=True)
    if dry_run:
        return 0
    ray.put(PATH, json=dict(config)).raise_for_status()
    names = [application["name"] for application in config["applications"]]
    states: dict[str, str] = {}
    while True:
        time.sleep(EVERY_S)
        now = _applications(ray)
        if gone := [name for name in names if name not in now]:
            print(f"diptych: Ray was sent another config meanwhile, without {', '.join(gone)}.", file=sys.stderr)
            return 1
        for name in names:
            state = str(now[name].get("status", "NOT_STARTED"))
            if state != states.get(name):
                print(f"{name}: {state.lower().replace('_', ' ')}{_message(now[name])}", flush=True)
            states[name] = state
        if all(state in ENDED for state in states.values()):
            return 0 if set(states.values()) == {"RUNNING"} else 1


def changes(before: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each application that a config adds, changes or removes. before: those that run, by name."""
    after = {application["name"]: application for application in config["applications"]}
    for name, application in after.items():
        old = before.get(name)
        if old is None:
            yield f"{name}: is added"
        elif _version(old) != _version(application):
            yield f"{name}: its processes are replaced"
        elif (old.get("deployments") or []) != (application.get("deployments") or []):
            yield f"{name}: changes in place"
    for name in sorted(before.keys() - after.keys()):
        yield f"{name}: is removed"


def _version(application: Mapping[str, Any]) -> list[Any]:
    """Return the parts of an application by which Serve tells whether its processes have to start anew."""
    scaled = [deployment.get("autoscaling_config") or {} for deployment in application.get("deployments") or ()]
    policies = [scaling["policy"] for scaling in scaled if "policy" in scaling]
    return [*(application.get(part) or {} for part in ("import_path", "args", "runtime_env")), policies]


def _applications(ray: httpx.Client) -> dict[str, Any]:
    reply = ray.get(PATH).raise_for_status()
    return dict(reply.json().get("applications") or {})


def _message(application: Mapping[str, Any]) -> str:
    """Return Serve's words about an application, of a traceback its last line."""
    lines = str(application.get("message") or "").strip().splitlines()
    return f": {lines[-1].strip()[:500]}" if lines else ""


if __name__ == "__main__":
    sys.exit(main())
