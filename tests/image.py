"""The container image as the Dockerfile tells it, and as buildah builds it; containers of it by Linux' own means."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / ".deploy"


@dataclass
class Stage:
    """One stage of a Dockerfile: where it starts from, and its instructions in order."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == word]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))

    @property
    def healthcheck(self) -> list[str]:
        """The command of HEALTHCHECK, which has to be in exec form."""
        found: list[str] = json.loads(self.all("HEALTHCHECK")[0].split("CMD ", 1)[1])
        return found


def stages(text: str) -> list[Stage]:
    """Return a Dockerfile's stages."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, rest = line.split(None, 1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name))
        else:
            found[-1].instructions.append((word, rest.strip()))
    return found


def buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def build(tag: str, arguments: Sequence[str] = ()) -> None:
    """Build the Dockerfile where no container engine runs."""
    plain = ("--format", "docker", "--isolation", "chroot", "--network", "host", "--pull=false")
    buildah("bud", *plain, *arguments, "-t", tag, str(ROOT))


def as_pip_here(file: Path) -> list[str]:
    """Return what makes pip in a build ask where pip here is told to; nothing where it is told nothing."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    told = dict(re.findall(r"^(?:global|:env:)\.(index-url|find-links|cert)='(.*)'$", listed.stdout, re.MULTILINE))
    if not told:
        return []
    file.write_text("\n".join(["[global]", *(f"{key} = {value}" for key, value in told.items())]))
    places = [place for value in told.values() for place in value.split() if Path(place).exists()]
    mounts = [(str(file), "/etc/pip.conf"), *((place, place) for place in places)]
    torch_too = ["--build-arg", "TORCH_INDEX_URL="] if told.keys() - {"cert"} else []
    return [*torch_too, *(part for here, there in mounts for part in ("-v", f"{here}:{there}:ro"))]


def config(image: str) -> dict[str, Any]:
    """Return what an image tells a container engine: User, Env, Cmd, Healthcheck, Labels, …."""
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    return found


@contextmanager
def root_of(image: str) -> Iterator[Path]:
    """Mount an image's files; nothing in the image itself changes."""
    container = buildah("from", "--pull=false", image)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container)


@dataclass
class Container:
    """A process of an image: number 1 of its processes, as the image's user, on a root that cannot be written."""

    root: Path
    config: dict[str, Any]
    mounts: dict[Path, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, command: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a command, the image's own where none is given."""
        return subprocess.Popen(
            self._command(command or self.config["Cmd"]), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a container of its own on the same network."""
        return subprocess.run(self._command(command), capture_output=True, text=True, timeout=120)

    def healthcheck(self) -> int:
        """Return what the image's health check exits with."""
        return self.run(*self.config["Healthcheck"]["Test"][1:]).returncode

    def _command(self, command: Sequence[str]) -> list[str]:
        settings = [*self.config["Env"], *(f"{name}={value}" for name, value in self.environment.items())]
        user, group = self.config["User"].split(":")
        as_user = (
            "setpriv",
            "--reuid",
            user,
            "--regid",
            group,
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        )
        inside = ["chroot", str(self.root), *as_user, "env", "-i", *settings, *command]
        mounts = [("--bind", *map(str, (self.root, self.root)))]
        mounts += [("--bind", str(place), f"{self.root}{target}") for place, target in self.mounts.items()]
        mounts += [("-o", "remount,bind,ro", str(self.root)), ("-t", "tmpfs", "tmpfs", f"{self.root}/tmp")]
        mounts += [("-t", "proc", "proc", f"{self.root}/proc"), ("--rbind", "/dev", f"{self.root}/dev")]
        steps = [shlex.join(["mount", *each]) for each in mounts]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c"),
            " && ".join([*steps, "exec " + shlex.join(inside)]),
        ]


def inner_pid(process: subprocess.Popen[str]) -> int:
    """Return the number, on this machine, of the process that is number 1 in its container."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@contextmanager
def running(container: Container, start_s: float = 120) -> Iterator[subprocess.Popen[str]]:
    """Start an image's own command and wait until its health check passes; it is ended afterwards."""
    process = container.start()
    try:
        deadline = time.monotonic() + start_s
        while container.healthcheck() != 0:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline, "not healthy in time"
            time.sleep(0.5)
        yield process
    finally:
        if process.poll() is None:
            os.kill(inner_pid(process), signal.SIGKILL)
        process.communicate(timeout=20)
