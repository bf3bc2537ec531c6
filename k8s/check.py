"""`make k8s-check`: every overlay rendered and held to everything that can be known of it without a cluster.

It leaves out aloud what it cannot do: without kubectl all of it, without --crds the custom kinds, without checkov its
rules, without promtool the alerts' tests. With --strict these are faults.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from deployments.config import ConfigError
from k8s.checks import kuberay, linted, rendered, rules, schemas
from k8s.checks.serve_config import serve_config


class Report:
    """Says each thing that was looked at, with its faults."""

    def __init__(self, strict: bool) -> None:
        self.faults = 0
        self.strict = strict

    def check(self, what: str, faults: Iterable[str]) -> bool:
        """Whether there were none."""
        found = list(faults)
        self.faults += len(found)
        print(f"{'FAIL' if found else 'ok  '}  {what}", flush=True)
        for fault in found:
            print(f"      {fault}", flush=True)
        return not found

    def leave_out(self, what: str, why: str) -> None:
        self.faults += self.strict
        print(f"SKIPPED  {what}: {why}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0: no fault; 1: some."""
    parser = argparse.ArgumentParser("k8s.check", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=rendered.FOLDER, help="of the manifests")
    parser.add_argument("--only", help="one overlay")
    parser.add_argument(
        "--crds", type=Path, help="a folder of CRDs: KubeRay's, the operator's of Prometheus, Gateway API's"
    )
    parser.add_argument("--checkov", type=Path, help="the program")
    parser.add_argument("--strict", action="store_true", help="what is left out is a fault")
    options = parser.parse_args(argv)
    report = Report(options.strict)
    if not rendered.able():
        report.leave_out("everything", "kubectl is not installed")
        return 1 if report.faults else 0
    crds = schemas.definitions(options.crds) if options.crds and options.crds.is_dir() else None
    if crds is None:
        report.leave_out("custom kinds", f"{options.crds or '--crds'} is no folder of CRDs")
    if options.checkov is None:
        report.leave_out("checkov", "no --checkov")
    if not rules.able():
        report.leave_out("the alerts' tests", "promtool is not installed (Debian: prometheus)")
    for overlay in rendered.overlays(options.folder):
        if options.only in (None, overlay.name):
            _overlay(report, overlay, crds, options.checkov)
    monitoring = options.folder / "components" / "monitoring"
    alerts = yaml.safe_load((monitoring / "alerts.yaml").read_text())
    report.check("alerts: every name is counted", rules.names(alerts))
    if rules.able():
        report.check(
            "alerts: promtool, each in its case and in no other",
            rules.promtool(alerts, monitoring / "alerts_test.yaml"),
        )
    if options.checkov is not None:
        for file in (options.folder / "Dockerfile", options.folder / "loadtest" / "Dockerfile"):
            report.check(f"{file.relative_to(options.folder)}: checkov", linted.dockerfile(options.checkov, file))
    print(f"{report.faults} faults" if report.faults else "no fault", flush=True)
    return 1 if report.faults else 0


def _overlay(report: Report, overlay: Path, crds: schemas.Definitions | None, checkov: Path | None) -> None:
    name = overlay.name
    try:
        documents = rendered.rendered(overlay)
    except rendered.Broken as broken:
        report.check(f"{name}: kustomize", [str(broken)])
        return
    pods = rendered.pods(documents)
    report.check(f"{name}: only GPU pods may write into their image", linted.writable(pods))
    report.check(
        f"{name}: {len(documents)} documents, {len(pods)} pods, Kubernetes {schemas.VERSION}",
        schemas.core(documents + pods),
    )
    sound = crds is None or report.check(f"{name}: custom kinds", schemas.custom(documents, crds))
    for service in rendered.of_kind(documents, "RayService"):
        report.check(f"{name}: serveConfigV2", serve_config(service))
        if sound:  # the rules read numbers where the schema has some
            report.check(f"{name}: what KubeRay refuses, and times", _unless_refused(service))
    if checkov is not None:
        with tempfile.TemporaryDirectory() as folder:
            report.check(
                f"{name}: checkov",
                linted.pods(checkov, pods, rendered.of_kind(documents, "NetworkPolicy"), Path(folder)),
            )


def _unless_refused(service: rendered.Document) -> list[str]:
    """Rules that read the Serve config have nothing to say of one that is wrong; its own check has."""
    try:
        return list(kuberay.kuberay(service))
    except ConfigError:
        return []


if __name__ == "__main__":
    sys.exit(main())
