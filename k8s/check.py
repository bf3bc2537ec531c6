"""`make k8s-check`: renders every overlay and holds it to everything that can be known of it without a cluster.

It prints what it has to leave out: without kubectl all of it, without --crds the custom kinds, without checkov its
rules, without --helm the chart, without promtool the alerts' tests.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.checks import batches, chart, image, kuberay, linted, operations, rendered, rules, schemas
from k8s.checks.serve_config import is_made, serve_config


class Report:
    """Prints each check with its faults, and counts them."""

    faults = 0

    def check(self, what: str, faults: Iterable[str]) -> bool:
        """Print a check's faults. Return whether there are none."""
        lines = list(faults)
        self.faults += len(lines)
        print(f"{'FAIL' if lines else 'ok  '}  {what}", *lines, sep="\n      ", flush=True)
        return not lines

    def leave_out(self, what: str, why: str) -> None:
        print(f"SKIPPED  {what}: {why}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 without a fault, else 1."""
    parser = argparse.ArgumentParser("k8s.check", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=rendered.FOLDER, help="of the manifests")
    parser.add_argument("--only", help="one overlay")
    parser.add_argument(
        "--crds", type=Path, help="a folder of CRDs: KubeRay's, the operator's of Prometheus, Gateway API's"
    )
    parser.add_argument("--checkov", type=Path, help="the program")
    parser.add_argument("--helm", type=Path, help="a folder with helm-python-sdk")
    options = parser.parse_args(argv)
    report = Report()
    if not rendered.able():
        report.leave_out("everything", "kubectl is not installed")
        return 0
    crds = schemas.definitions(options.crds) if options.crds and options.crds.is_dir() else None
    if crds is None:
        report.leave_out("custom kinds", f"{options.crds or '--crds'} is no folder of CRDs")
    if options.checkov is None:
        report.leave_out("checkov", "no --checkov")
    if not rules.able():
        report.leave_out("the alerts' tests", "promtool is not installed (Debian: prometheus)")
    helm = chart.engine(options.helm) if options.helm is not None else None
    if helm is None:
        report.leave_out("the chart", "no --helm")
    else:
        report.check("chart: helm lint", chart.linted(helm, options.folder / "chart"))
    for overlay in rendered.overlays(options.folder):
        if options.only in (None, overlay.name):
            _overlay(report, overlay, crds, options.checkov, helm)
    monitoring = options.folder / "components" / "monitoring"
    alerts = yaml.safe_load((monitoring / "alerts.yaml").read_text())
    report.check("alerts: every name is counted", rules.names(alerts))
    if rules.able():
        tested = rules.promtool(alerts, monitoring / "alerts_test.yaml")
        report.check("alerts: promtool, each in its case and in no other", tested)
    dockerfile = options.folder / "Dockerfile"
    root = rendered.FOLDER.parent
    written = image.rewritten_mb(dockerfile, root)
    report.check(
        f"Dockerfile: a change of the code writes {written:.0f} MB of an image anew", image.layers(dockerfile, root)
    )
    if options.checkov is not None:
        for file in (options.folder / path / "Dockerfile" for path in ("", "loadtest", "batch")):
            report.check(f"{file.relative_to(options.folder)}: checkov", linted.dockerfile(options.checkov, file))
    print(f"{report.faults} faults" if report.faults else "no fault", flush=True)
    return 1 if report.faults else 0


def _overlay(report: Report, overlay: Path, crds: schemas.Definitions | None, checkov: Path | None, helm: Any) -> None:
    name = overlay.name
    try:
        documents = rendered.rendered(overlay)
    except rendered.Broken as broken:
        report.check(f"{name}: kustomize", [str(broken)])
        return
    pods = rendered.pods(documents)
    report.check(f"{name}: applications.yaml is made of serve.yaml", is_made(overlay))
    report.check(f"{name}: only GPU pods may write into their image", linted.writable(pods))
    counts = f"{len(documents)} documents, {len(pods)} pods, Kubernetes {schemas.VERSION}"
    report.check(f"{name}: {counts}", schemas.core(documents + pods))
    valid = crds is None or report.check(f"{name}: custom kinds", schemas.custom(documents, crds))
    services = rendered.of_kind(documents, "RayService")
    if helm is not None and services:
        same = chart.differences(helm, overlay.parents[1] / "chart", name, documents)
        report.check(f"{name}: the chart gives the same", same)
    if valid:
        report.check(f"{name}: scheduling, drains, changes, alerts", operations.operations(documents))
    for service in services:
        report.check(f"{name}: serveConfigV2", serve_config(service))
        if valid:  # the rules read numbers where the schema has some
            report.check(f"{name}: what KubeRay refuses, and times", kuberay.kuberay(service))
    for job in rendered.of_kind(documents, "RayJob"):
        report.check(f"{name}: what KubeRay refuses of a job", kuberay.ray_job(job))
        report.check(f"{name}: room for the models", batches.ray_batch(documents))
    for job in rendered.of_kind(documents, "Job"):
        report.check(f"{name}: shards of a Job", batches.indexed_job(job))
    if checkov is not None:
        with tempfile.TemporaryDirectory() as folder:
            policies = rendered.of_kind(documents, "NetworkPolicy")
            report.check(f"{name}: checkov", linted.pods(checkov, pods, policies, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
