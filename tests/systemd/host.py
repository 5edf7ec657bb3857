"""A host with autossm on it, as an operations team would set it up, and the AWS account that it reaches."""

import json
import os
import subprocess
import time
from pathlib import Path

from container import children, wait

PLUGINS = "/usr/local/sessionmanagerplugin"
PORTS = {"db": 15432, "other": 15433, "spare": 15434}
RATE = 20


class Lab:
    """The simulated account: in the container's network, out of its sight."""

    def __init__(self, container, programs):
        self.errors = open(container.folder / "lab", "wb")
        self.process = subprocess.Popen(
            container.in_network(programs / "lab", "--stay"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.addresses = json.loads(self.process.stdout.readline())

    def ask(self, command):
        print(command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def sessions(self):
        return set(self.ask("sessions"))

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.errors.close()


class Site:
    def __init__(self, container, programs):
        self.container = container
        self.programs = programs
        self.lab = None

    def run(self, *words, **options):
        return self.container.run(*words, **options)

    def open_account(self):
        self.lab = Lab(self.container, self.programs)

    def close_account(self):
        if self.lab is not None:
            self.lab.end()
            self.lab = None

    def tunnel(self, name, keys="", local_port=None):
        host, port = self.lab.addresses["destinations"]["echo"].rsplit(":", 1)
        return f"""
[[tunnel]]
name = "{name}"
listen = ["127.0.0.1:{local_port or PORTS[name]}", "unix:/run/autossm/{name}/clients.sock"]
target = "i-0123456789abcdef0"
remote_host = "{host}"
remote_port = {port}
region = "us-west-2"
endpoint_url = "{self.lab.addresses['api_url']}"
stream_endpoint = "{self.lab.addresses['stream_endpoint_ws']}"
{keys}
"""

    def configure(self, **keys):
        """The file with its three tunnels, each with further keys."""
        keys = {"spare": "enabled = false"} | keys
        self.write_configuration("".join(self.tunnel(name, keys.get(name, "")) for name in PORTS))

    def write_configuration(self, text):
        self.container.write("/etc/autossm/config.toml", text)

    def name_localhost(self):
        """What every installed host has, and a bootstrapped one has not: the stock plugin looks the name up."""
        self.container.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")

    def install_plugin(self):
        """The stock plugin or the stand-in, where AWS's package puts it."""
        with open(os.environ.get("AUTOSSM_TEST_PLUGIN", self.programs / "standin-plugin"), "rb") as program:
            place = f"{PLUGINS}/bin/session-manager-plugin"
            script = f'mkdir -p {PLUGINS}/bin && cat > {place} && chmod 755 {place}'
            subprocess.run(self.container.command("sh", "-c", script), stdin=program, check=True)

    def install_credentials(self):
        """As autossm@.service(8) says."""
        keys = "[default]\naws_access_key_id = AKIDTESTTESTTESTTEST\naws_secret_access_key = not-a-secret\n"
        self.container.write("/etc/autossm/aws-credentials", keys, mode=0o600)
        self.container.write(
            "/etc/systemd/system/autossm@.service.d/credentials.conf",
            "[Service]\nLoadCredential=aws-credentials:/etc/autossm/aws-credentials\n"
            "Environment=AWS_SHARED_CREDENTIALS_FILE=%d/aws-credentials\n",
        )

    def install_package(self, package):
        with open(package, "rb") as bytes_:
            subprocess.run(self.container.command("sh", "-c", "cat > /tmp/autossm.deb"), stdin=bytes_, check=True)
        return self.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--install", "/tmp/autossm.deb")

    def main_pid(self, name="db"):
        """As the container counts; 0 while there is none."""
        return int(self.container.show(f"autossm@{name}", "MainPID")[0] or 0)

    def host_pid(self, inner):
        """The number here of a process of the container."""
        for pid in descendants(self.container.leader):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(line.startswith("NSpid:") and line.split()[-1] == str(inner) for line in status.splitlines()):
                return pid
        return None

    def plugins(self):
        """Ids here of every plugin that lives in the container."""
        return [pid for pid in descendants(self.container.leader) if comm(pid).startswith("session-manager")]

    def is_up(self, name="db"):
        return self.container.show(f"autossm@{name}", "ActiveState", "SubState") == ["active", "running"]

    def wait_up(self, name="db", other_than=0):
        def up():
            state, sub, pid = self.container.show(f"autossm@{name}", "ActiveState", "SubState", "MainPID")
            return [state, sub] == ["active", "running"] and int(pid) != other_than and int(pid)

        return wait(f"autossm@{name} to be up", 60, up)

    def journal(self, *words):
        lines = self.run("journalctl", "-o", "json", "--no-pager", *words, check=False).stdout.splitlines()
        return [json.loads(line) for line in lines]


class Load:
    """Clients that come at a steady rate, and what they saw."""

    def __init__(self, site, name="db", rate=RATE):
        script = Path(__file__).with_name("load.py")
        # An unlimited pipe: what is printed waits in a file.
        self.path = site.container.folder / f"load-{time.monotonic_ns()}"
        self.output = open(self.path, "wb")
        self.process = subprocess.Popen(
            site.container.in_network("python3", script, "127.0.0.1", PORTS[name], rate),
            stdin=subprocess.PIPE,
            stdout=self.output,
        )
        wait("the first client", 30, lambda: self.path.stat().st_size > 0)

    def finish(self):
        """Every client: when it came, how long it took, what went wrong."""
        self.process.communicate(timeout=150)
        self.output.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def descendants(pid):
    found = [pid]
    for child in children(pid):
        found += descendants(child)
    return found


def comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
