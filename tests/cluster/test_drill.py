"""`make k8s-check` itself: checkov too, and cpu-demo on a cluster of network namespaces, models without weights."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.drill import STEPS, drain_node, lose_spot_node, roll_image
from k8s.checks import rendered, rules

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not rendered.able(), reason="kubectl is not installed")
def test_k8s_check_finds_no_fault_and_the_drill_loses_no_request() -> None:
    crds = os.environ.get("CRDS", "../shared/kuberay")
    done = subprocess.run(["make", "k8s-check", f"CRDS={crds}"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    for overlay in rendered.overlays():
        assert f"ok    {overlay.name}: checkov" in done.stdout
        if overlay.parent.name == "overlays":
            assert f"ok    {overlay.name}: the chart gives the same" in done.stdout
    assert "ok    Dockerfile: checkov" in done.stdout and "no fault" in done.stdout
    manifests, _, _ = done.stdout.partition("no fault")  # the drill follows, which may be left out by itself
    assert ("SKIPPED" in manifests) == (not (ROOT / crds).is_dir() or not rules.able()), done.stdout
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("the drill wants root and iproute2")
    for step in set(STEPS) - {drain_node, roll_image, lose_spot_node}:  # these take too long for every change
        assert f"ok    {step.__name__}: " in done.stdout
