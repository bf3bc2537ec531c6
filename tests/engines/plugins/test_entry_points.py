"""Every plugin is declared, so that vLLM finds it in each of its processes."""

import pkgutil
import tomllib
from pathlib import Path

import serve.engines.plugins

ROOT = Path(__file__).parents[3]


def test_every_module_with_a_register_function_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = set(project["entry-points"]["vllm.general_plugins"].values())
    folder = Path(serve.engines.plugins.__path__[0])
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    written = {name for name in names if "\ndef register(" in (folder / f"{name}.py").read_text()}
    assert declared == {f"serve.engines.plugins.{name}:register" for name in written}
