"""A container with a real systemd as its PID 1, on a host that may have none.

Its disk is an overlay over a root file system that is never written to, and lives until the container is removed: so
that it can be shut down and booted again with what was installed.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# A service manager makes its own cgroups: it gets one of its own to make them in. On a host with both versions, systemd
# needs its named hierarchy too.
HIERARCHIES = [CGROUPS / "unified", CGROUPS / "systemd"] if (CGROUPS / "unified").is_dir() else [CGROUPS]
ENVIRONMENT = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_COLORS=0", "TERM=dumb"]


class Container:
    def __init__(self, rootfs):
        self.name = f"autossm-{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="autossm-systemd-"))
        self.root = self.folder / "root"
        self.nspawn = self.leader = None
        for part in ["upper", "work", "root"]:
            (self.folder / part).mkdir()
        self.layers = f"lowerdir={rootfs},upperdir={self.folder}/upper,workdir={self.folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", self.layers, self.root], check=True)

    def boot(self):
        """Returns when the boot is over: what `systemctl is-system-running` says then."""
        for hierarchy in HIERARCHIES:
            (hierarchy / self.name).mkdir()
        self.console = open(self.folder / "console", "ab")
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.name}"]
            + ["--register=no", "--keep-unit", "--private-network", "--link-journal=no", "--console=pipe"]
            + ["--system-call-filter=bpf"],
            stdin=subprocess.DEVNULL,
            stdout=self.console,
            stderr=self.console,
            start_new_session=True,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            preexec_fn=self._enter_cgroups,
        )
        self.leader = wait("the container's PID 1", 30, self._find_leader)
        return self.run("timeout", "120", "systemctl", "is-system-running", "--wait", check=False).stdout.strip()

    def _enter_cgroups(self):
        for hierarchy in HIERARCHIES:
            (hierarchy / self.name / "cgroup.procs").write_text(str(os.getpid()))

    def _find_leader(self):
        if self.nspawn.poll() is not None:
            raise RuntimeError((self.folder / "console").read_text(errors="replace"))
        for pid in children(self.nspawn.pid):
            if Path(f"/proc/{pid}/root/run/systemd/private").is_socket():
                return pid
        return None

    def command(self, *words):
        """A command's words, as they are run from outside."""
        return ["nsenter", "-t", str(self.leader), "-a", "--", *ENVIRONMENT, *map(str, words)]

    def in_network(self, *words):
        """The words of a host's command that runs in the container's network alone."""
        return ["nsenter", "-t", str(self.leader), "-n", "--", *map(str, words)]

    def run(self, *words, check=True, stdin=None):
        done = subprocess.run(self.command(*words), input=stdin, text=True, capture_output=True, timeout=180)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def show(self, unit, *properties):
        """Properties of a unit, in the order asked for."""
        lines = self.run("systemctl", "show", unit, "-p", ",".join(properties)).stdout.splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line)
        return [found.get(name, "") for name in properties]

    def write(self, path, text, mode=0o644):
        path = self.root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Through the container, whose mounts may lie over the disk's.
        name = "/" + str(path.relative_to(self.root))
        self.run("sh", "-c", f'mkdir -p "$(dirname "{name}")"; cat > "{name}"; chmod {mode:o} "{name}"', stdin=text)

    def shut_down(self):
        """An orderly power-off; whatever does not end by itself is ended."""
        if self.nspawn is None:
            return
        if self.nspawn.poll() is None:
            self.nspawn.send_signal(signal.SIGTERM)
            try:
                self.nspawn.wait(40)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        # PID 1 outlives an nspawn that was killed. Its number is not another's: it is in the container's cgroup.
        for hierarchy in HIERARCHIES:
            for procs in (hierarchy / self.name).rglob("cgroup.procs"):
                for pid in procs.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            wait(f"{hierarchy / self.name} to be empty", 10, lambda: remove_cgroup(hierarchy / self.name))
        self.console.close()
        self.nspawn = self.leader = None

    def remove(self):
        self.shut_down()
        subprocess.run(["umount", self.root], check=True)
        shutil.rmtree(self.folder)
        left = Path("/run/systemd/nspawn/propagate") / self.name
        if left.is_dir():
            left.rmdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()


def remove_cgroup(path):
    try:
        for folder in sorted(path.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait(what, seconds, ready):
    """Asks until `ready` gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {seconds} s")
