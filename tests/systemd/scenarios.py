"""What operators meet, one after the other, in one container: scenarios.py ROOTFS PACKAGES PROGRAMS

Prints a line for each thing that is shown, with its figures; ends with status 1 if one of them is not so.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from container import Container, wait
from host import PLUGINS, PORTS, Load, Site

# Between a signal and the moment when the daemon accepts no more, on a busy machine.
SLACK = 0.1
# Beyond what a restart takes, nobody may wait for longer.
WAIT = 2.0
TIMES = 10


class Report:
    def __init__(self):
        self.failed = 0

    def step(self, what):
        print(f"\n-- {what}", flush=True)

    def shows(self, holds, what):
        self.failed += not holds
        print(f"   {'ok  ' if holds else 'FAIL'} {what}", flush=True)


class Scenarios:
    def __init__(self, rootfs, packages, programs):
        self.report = Report()
        self.container = Container(rootfs)
        self.site = Site(self.container, programs)
        self.packages = sorted(packages.glob("*.deb"))
        self.rpm = next(iter(packages.glob("*.rpm")), None)

    def shows(self, holds, what):
        self.report.shows(holds, what)

    def run(self):
        try:
            state = self.container.boot()
            version = self.site.run("systemctl", "--version").stdout.split("\n")[0]
            print(f"== {version}: {state}")
            self.site.open_account()
            for scenario in [
                self.install,
                self.units_are_right,
                self.start,
                self.start_without_a_session,
                self.privileged_port,
                self.sandbox,
                self.journal,
                self.control,
                self.web,
                self.unknown_name,
                self.restarts,
                self.kills,
                self.upgrade,
                self.reload,
                self.hang,
                self.bad_reload,
                self.stop,
                self.boot_again,
                self.boot_with_a_bad_file,
                self.remove,
                self.rpm_lists_the_same,
            ]:
                self.report.step(scenario.__name__.replace("_", " "))
                try:
                    scenario()
                except Exception as error:  # The others are to be seen all the same.
                    self.shows(False, f"{type(error).__name__}: {error}")
        finally:
            self.site.close_account()
            self.container.remove()
        print(f"\n{self.report.failed or 'nothing'} failed on {version}", flush=True)
        return self.report.failed == 0

    # Package and units

    def install(self):
        site = self.site
        site.name_localhost()
        site.install_plugin()
        site.install_package(self.packages[0])
        self.shows(self.systemctl("is-enabled", "autossm.target") == "disabled", "the package enables nothing")
        self.systemctl("start", "autossm.target")
        units = site.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "autossm*").stdout
        self.shows(units.split()[:1] == ["autossm.target"] and units.count("\n") == 1, "the file as it comes starts nothing")
        self.systemctl("stop", "autossm.target")

    def units_are_right(self):
        units = "/usr/lib/systemd/system"
        names = ["autossm@db.service", "autossm.target", "autossm-config.service", "autossm-web.service"]
        found = self.site.run("env", "SYSTEMD_LOG_LEVEL=warning", "systemd-analyze", "verify", *names, check=False)
        said = found.stdout + found.stderr
        self.shows(found.returncode == 0 and not said.strip(), f"systemd-analyze verify is silent {said.strip()}")
        began = time.monotonic()
        self.site.run(f"{units}-generators/autossm-generator", *["/tmp"] * 3)
        self.shows(True, f"the generator takes {1000 * (time.monotonic() - began):.0f} ms")

    def start(self):
        site = self.site
        site.install_credentials()
        site.configure()
        began = time.monotonic()
        self.systemctl("enable", "--now", "autossm.target")
        took = time.monotonic() - began
        states = {name: self.state(name) for name in PORTS}
        expected = {"db": "active", "other": "active", "spare": "inactive"}
        self.shows(states == expected, f"enable --now starts what is enabled, in {took:.1f} s: {states}")
        clients = self.quiet_load(2)
        bad = [client for client in clients if client[2]]
        self.shows(clients and not bad, f"traffic flows: {len(clients)} connections, {len(bad)} failed")
        status = self.container.show("autossm@db", "StatusText")[0]
        self.shows(bool(re.search(r"up .*session", status)), f"status: {status!r}")
        kind = self.container.show("autossm@db", "Type")[0]
        modern = int(site.run("systemctl", "--version").stdout.split()[1]) >= 253
        self.shows(kind == ("notify-reload" if modern else "notify"), f"Type={kind}")
        self.systemctl("start", "autossm@spare")
        self.shows(self.state("spare") == "active", "a disabled tunnel starts by its name")
        self.systemctl("stop", "autossm@spare")

    def start_without_a_session(self):
        site = self.site
        site.configure(spare='enabled = false\nstart_timeout = "2s"')
        site.lab.ask("start denied")
        began = time.monotonic()
        self.systemctl("start", "autossm@spare")
        took = time.monotonic() - began
        status = self.container.show("autossm@spare", "StatusText")[0]
        self.shows(2 <= took < 4 and self.state("spare") == "active", f"started after {took:.1f} s of start_timeout = 2s: {status!r}")
        self.systemctl("stop", "autossm@spare")
        site.lab.ask("clear")
        site.configure()

    def privileged_port(self):
        """The drop-in of autossm@.service(8)."""
        site = self.site
        tunnels = [site.tunnel("db"), site.tunnel("other"), site.tunnel("spare", "enabled = false", local_port=443)]
        site.write_configuration("".join(tunnels))
        site.run("systemctl", "start", "--no-block", "autossm@spare")
        wait("a refusal", 20, lambda: self.container.show("autossm@spare", "ExecMainStatus")[0] == "69")
        self.shows(True, "a port below 1024 cannot be bound: status 69, tried again")
        found = wait("doctor's look between two starts", 60, lambda: self.unit_found("spare", "failure"))
        self.shows("status 69" in found["message"], f"doctor: {found['message']} → {found['remedy']}")
        said = site.run("autossm", "why", "spare", check=False).stdout.splitlines()[:1]
        recorded = site.run("grep", "-c", '"event":"bind_failed"', "/var/lib/autossm/spare/events.jsonl").stdout.strip()
        restarts = self.container.show("autossm@spare", "NRestarts")[0]
        self.shows(recorded == "1" and "cannot be started" in said[0], f"recorded {recorded}× in {restarts} restarts; why: {said}")
        self.systemctl("stop", "autossm@spare")
        man = site.run("sh", "-c", "zcat /usr/share/man/man8/autossm@.service.8.gz").stdout.split("A port below 1024\n.nf\n")[1]
        drop_in = "/etc/systemd/system/autossm@spare.service.d/port.conf"
        self.container.write(drop_in, man.split(".fi")[0].replace("\\-", "-"))
        self.systemctl("daemon-reload")
        self.systemctl("start", "autossm@spare")
        self.shows(self.connect(443) == "served", "with the manual's drop-in it is served")
        self.systemctl("stop", "autossm@spare")
        site.run("rm", "-r", str(Path(drop_in).parent))
        self.systemctl("daemon-reload")
        site.configure()

    def sandbox(self):
        site = self.site
        said = site.run("systemd-analyze", "security", "--no-pager", "autossm@db.service").stdout
        figure = float(re.search(r"exposure level for \S+: ([\d.]+)", said).group(1))
        self.shows(figure <= 1.5, f"exposure {figure}")
        if figure > 1.5:
            print("\n".join(line for line in said.splitlines() if line.startswith("✗")))
        daemon = site.host_pid(site.main_pid())
        status = dict(line.split(":", 1) for line in Path(f"/proc/{daemon}/status").read_text().splitlines())
        self.shows(int(status["CapBnd"], 16) == 0 and status["Seccomp"].strip() == "2", "no capability, system calls filtered")
        user = site.run("ps", "-o", "user=", "-p", site.main_pid()).stdout.strip()
        self.shows(user == "autossm", f"runs as {user}")
        self.shows(not (self.container.root / f"{PLUGINS}/seelog.xml".lstrip("/")).exists(), "the host has no seelog.xml after it")
        inside = Path(f"/proc/{site.plugins()[0]}/root{PLUGINS}/seelog.xml")
        self.shows("console" in inside.read_text(), "the plugin sees ours")

    def journal(self):
        site = self.site
        site.lab.ask("close")
        wait("the resumption", 30, lambda: [e for e in site.journal("-u", "autossm@db") if e.get("AUTOSSM_EVENT") == "resumed"])
        entries = site.journal("-u", "autossm@db")
        for field in ["TUNNEL", "SESSION", "EVENT", "REASON", "DURATION_MS"]:
            having = [entry for entry in entries if f"AUTOSSM_{field}" in entry]
            example = having[-1][f"AUTOSSM_{field}"] if having else None
            self.shows(bool(having), f"AUTOSSM_{field}= in {len(having)} of {len(entries)} entries, such as {example!r}")
        kinds = {}
        for entry in entries:
            if "AUTOSSM_EVENT" in entry:
                kinds.setdefault(entry["AUTOSSM_EVENT"], set()).add(entry.get("MESSAGE_ID"))
        good = kinds and all(len(ids) == 1 and None not in ids for ids in kinds.values())
        self.shows(good, f"one MESSAGE_ID for each of {len(kinds)} kinds of event: {', '.join(sorted(kinds))}")
        explained = site.run("journalctl", "-x", "--no-pager", "-u", "autossm@db").stdout.count("\n░░ Subject: ")
        self.shows(explained > 0, f"journalctl -x explains {explained} entries")
        plugin = site.journal("-u", "autossm@db", "SYSLOG_IDENTIFIER=session-manager-plugin")
        example = plugin[-1]["MESSAGE"] if plugin else None
        self.shows(bool(plugin), f"{len(plugin)} lines of the plugin, such as {example!r}")

    def control(self):
        site = self.site
        site.run("useradd", "--no-create-home", "--groups", "autossm", "member")
        site.run("useradd", "--no-create-home", "stranger")
        ask = lambda user, *words: site.run("runuser", "-u", user, "--", "autossm", *words, check=False)
        for user in ["root", "autossm", "member"]:
            done = ask(user, "status", "db")
            said = done.stdout.splitlines()[:1] or done.stderr
            self.shows(done.returncode == 0 and "db · up for" in done.stdout, f"status for {user}: {said}")
        mode = site.run("stat", "-c", "%U:%G %a", "/run/autossm/db/control.sock").stdout.strip()
        self.shows(mode == "autossm:autossm 660", f"the socket is {mode}")
        done = ask("stranger", "status", "db")
        self.shows(done.returncode == 77 and "member of the group autossm" in done.stderr, f"a stranger gets status {done.returncode}: {done.stderr.strip()}")
        done = ask("member", "status")
        rows = [line.split()[:2] for line in done.stdout.splitlines()[1:3]]
        self.shows(done.returncode == 0 and rows == [["db", "up"], ["other", "up"]], f"one process for each, one table: {rows}")
        done = ask("member", "drain", "db")
        self.shows(done.returncode == 0 and ask("member", "status", "db").returncode == 1, f"drained: {done.stdout.strip()}")
        ask("member", "resume", "db")
        done = ask("member", "wait", "db", "--timeout", "20s")
        self.shows(done.returncode == 0, f"resumed, and waited for {done.stderr.strip()}")
        ask("member", "rotate", "db")
        wait("the new session", 30, lambda: '"replaced": 1' in ask("root", "status", "db", "--json").stdout)
        self.shows(True, "rotated")
        self.systemctl("restart", "autossm@db")
        events = ask("member", "events", "db").stdout
        self.shows("asked for by" in events and "stopped" in events, f"{events.count(chr(10))} events outlive a restart")
        self.systemctl("stop", "autossm@other")
        done = ask("member", "status", "other")
        self.shows(done.returncode == 69 and "systemctl start autossm@other" in done.stderr, f"stopped: {done.stderr.strip()}")
        found = self.unit_found("other", "warning")
        self.shows(bool(found), f"doctor: {found and found['message']}")
        for user in ["root", "member"]:
            done = ask(user, "why", "other")
            said = done.stdout.splitlines()[:1]
            told = done.returncode == 69 and "other is not running since " in done.stdout and "it was stopped" in done.stdout
            self.shows(told, f"why for {user}: {said or done.stderr}")
        done = ask("stranger", "why", "other")
        self.shows(done.returncode == 69 and not done.stdout and "ask as root" in done.stderr, f"a stranger may not read the record: {done.stderr.splitlines()[:1]}")
        found = site.run("find", "/var/lib/autossm", "-type", "f", "-printf", "%P %m %u\n").stdout.split("\n")
        records = sorted(line for line in found if "events" in line)
        self.shows(records == [f"{name}/events.jsonl 640 autossm" for name in sorted(PORTS)], f"the records: {records}")
        self.systemctl("start", "autossm@other")

    def web(self):
        site = self.site
        self.systemctl("enable", "--now", "autossm-web")
        wait("the tunnels on the page", 30, lambda: self.ask("/readyz/db")[0] == 200 and self.ask("/readyz/other")[0] == 200)
        metrics = self.ask("/metrics")[1]
        ups = re.findall(r'autossm_tunnel_up\{tunnel="(\w+)"\} 1', metrics)
        self.shows(sorted(ups) == ["db", "other"], f"autossm-web sees {ups} through their sockets")
        self.shows("<title>autossm" in self.ask("/")[1], "and serves the page")
        said = site.run("systemd-analyze", "security", "--no-pager", "autossm-web.service").stdout
        figure = float(re.search(r"exposure level for \S+: ([\d.]+)", said).group(1))
        self.shows(figure <= 1.5, f"exposure {figure}")
        user = site.run("ps", "-o", "user=", "-p", self.container.show("autossm-web", "MainPID")[0]).stdout.strip()
        self.shows(user == "autossm", f"runs as {user}")
        before = [site.main_pid(name) for name in ("db", "other")]
        site.run("systemctl", "kill", "--signal=KILL", "autossm-web")
        bad = [client for client in self.quiet_load(2) if client[2]]
        wait("it to be back", 30, lambda: self.ask("/readyz/db")[0] == 200)
        same = before == [site.main_pid(name) for name in ("db", "other")]
        self.shows(not bad and same, f"killed, it comes back, and no tunnel has noticed: {len(bad)} clients failed")
        self.systemctl("stop", "autossm@other")
        wait("the stopped tunnel to be told of", 30, lambda: 'reachable{tunnel="other"} 0' in self.ask("/metrics")[1])
        self.shows(self.ask("/readyz/other")[0] == 503, "a tunnel that is to run and was stopped is told of")
        self.systemctl("mask", "--now", "autossm@other")
        wait("the masked tunnel to go", 30, lambda: self.ask("/readyz/other")[0] == 404)
        self.shows(True, "one that is masked is not")
        self.systemctl("unmask", "autossm@other")
        self.systemctl("start", "autossm@other")
        wait("it again", 30, lambda: self.ask("/readyz/other")[0] == 200)

    def unknown_name(self):
        done = self.site.run("systemctl", "start", "autossm@dbb", check=False)
        code, restarts = self.container.show("autossm@dbb", "ExecMainStatus", "NRestarts")
        said = "\n".join(entry["MESSAGE"] for entry in self.site.journal("-u", "autossm@dbb") if "no tunnel" in entry["MESSAGE"])
        named = all(name in said for name in PORTS)
        self.shows(done.returncode != 0 and code == "78" and restarts == "0", f"an unknown name: status {code}, {restarts} restarts")
        self.shows(named, f"with the list: {said.splitlines()[0] if said else None!r}")
        self.systemctl("reset-failed", "autossm@dbb")

    # Under load

    def restarts(self):
        def restart():
            self.systemctl("restart", "autossm@db")

        self.disturb("restart", restart, TIMES)

    def kills(self):
        def kill():
            pid = self.site.main_pid()
            daemon = self.site.host_pid(pid)
            killed = time.monotonic()
            os.kill(daemon, signal.SIGKILL)
            self.site.wait_up(other_than=pid)
            return killed

        self.disturb("kill -9", kill, TIMES)

    def upgrade(self):
        before = self.site.main_pid()
        def upgrade():
            self.site.install_package(self.packages[1])

        self.disturb("upgrade", upgrade, 1, untouched=0)
        version = self.site.run("dpkg-query", "-W", "-f", "${Version}", "autossm").stdout
        self.shows(self.site.main_pid() != before, f"{version} runs now")

    def reload(self):
        before, other = self.site.main_pid(), self.site.lab.sessions()
        load = Load(self.site)
        self.site.configure(other='reason = "changed"')
        self.systemctl("reload", "autossm@db", "autossm@other")
        wait("a new session of the other tunnel", 30, lambda: self.site.lab.sessions() - other)
        time.sleep(1)
        bad = [client for client in load.finish() if client[2]]
        self.shows(not bad and self.site.main_pid() == before, f"a reload that changes another tunnel: {len(bad)} failed")

    def disturb(self, what, act, times, untouched=1):
        """Does it again and again under load, and compares what clients saw with what may happen."""
        before = self.site.lab.sessions()
        load = Load(self.site)
        spans, instants = [], []
        for _ in range(times):
            time.sleep(1)
            began = time.monotonic()
            killed = act()
            wait("it to be up", 60, self.site.is_up)
            spans.append((began, time.monotonic()))
            instants += [killed] if killed else self.told_to_stop(began)
        time.sleep(1)
        clients = load.finish()

        def open_then(began, took):
            # Accepted by a process that is then told to end.
            return any(began <= instant + SLACK and instant <= began + took + SLACK for instant in instants)

        bad = [(began, took, why) for began, took, why in clients if why]
        cut = [client for client in bad if open_then(client[0], client[1])]
        wrong = [client for client in bad if client not in cut]
        refused = sum(why == "refused" for _, _, why in bad)
        served = [took for _, took, why in clients if not why]
        longest = max(end - start for start, end in spans)
        late = 0
        for began, took, why in clients:
            allowed = max([end - began for start, end in spans if start <= began <= end] or [0]) + WAIT
            late += not why and took > allowed + SLACK
        self.shows(
            not wrong and not refused,
            f"{what} × {times}: {len(clients)} connections, {refused} refused, {len(wrong)} lost, {len(cut)} open in that instant cut",
        )
        for began, took, why in wrong[:5]:
            nearest = min((began - instant for instant in instants), key=abs)
            print(f"        {why}: came {nearest:+.3f} s after the end of a process, {took:.3f} s long")
        self.shows(
            late == 0,
            f"the longest wait {max(served, default=0):.2f} s; the longest {what} {longest:.2f} s, "
            f"the shortest {min(end - start for start, end in spans):.2f} s",
        )
        self.shows(self.unix_echo() == b"echo", "the Unix socket's clients are served too")
        left = wait_for_few(self.site, 2)
        self.shows(
            len(left) == 2 and len(left & before) == untouched,
            f"{len(left)} sessions at the service, as there are tunnels; {len(left & before)} untouched",
        )

    def told_to_stop(self, since):
        """When, by its own log, a process has heard SIGTERM: a package does more before that than to send it."""
        stopping = self.site.journal("-u", "autossm@db", "AUTOSSM_EVENT=stopping")
        instants = [int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6 for entry in stopping]
        return [instant for instant in instants if instant >= since]

    def hang(self):
        site = self.site
        pid = site.main_pid()
        plugins, sessions = site.plugins(), site.lab.sessions()
        period = int(self.container.show("autossm@db", "WatchdogUSec")[0].rstrip("s"))
        load = Load(site, rate=5)
        began = time.monotonic()
        os.kill(site.host_pid(pid), signal.SIGSTOP)
        wait("another process", 3 * period, lambda: site.main_pid() not in (0, pid))
        noticed = time.monotonic() - began
        site.wait_up(other_than=pid)
        took = time.monotonic() - began
        self.shows(noticed <= 2 * period, f"WatchdogSec={period}: another process after {noticed:.1f} s, up after {took:.1f} s")
        clients = load.finish()
        refused = [client for client in clients if client[2] == "refused"]
        lost = [client for client in clients if client[2] and client[0] > began + noticed]
        self.shows(not refused and not lost, f"its ports stay: {len(clients)} connections, {len(refused)} refused, {len(lost)} lost after it")
        left = [plugin for plugin in plugins if plugin in site.plugins()]
        self.shows(len(left) == 1, f"its plugin is gone: {len(plugins) - len(left)} of {len(plugins)} (the other tunnel's stays)")
        self.shows(len(wait_for_few(site, 2)) == 2, f"{len(site.lab.sessions())} sessions at the service, {len(sessions)} before")

    def bad_reload(self):
        site = self.site
        pid = site.main_pid()
        load = Load(site)
        site.write_configuration("[[tunnel]]\nname = \"db\"\nlisten = 3\n")
        done = site.run("systemctl", "reload", "autossm@db", check=False)
        self.shows(done.returncode != 0, "a bad file: reload fails")
        # The way past systemctl.
        site.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "autossm@db")
        wait("the refusal", 20, lambda: [e for e in site.journal("-u", "autossm@db") if e.get("AUTOSSM_EVENT") == "reload_refused"])
        # The log comes first, the status line after it.
        def told():
            status = site.run("systemctl", "status", "--no-pager", "--full", "autossm@db", check=False).stdout
            return [line.strip() for line in status.splitlines() if "config.toml:3:10" in line]

        shown = wait("the refusal in the status line", 20, told)
        self.shows(bool(shown), f"systemctl status shows {shown[:1]}")
        time.sleep(1)
        bad = [client for client in load.finish() if client[2]]
        self.shows(not bad and site.main_pid() == pid and site.is_up(), f"the tunnel stays up: {len(bad)} failed")
        site.configure()
        self.systemctl("reload", "autossm@db")

    def stop(self):
        site = self.site
        kills = len(site.journal("-u", "autossm@*", "-g", "SIGKILL|status=9/KILL"))
        began = time.monotonic()
        self.systemctl("stop", "autossm.target")
        wait("the end", 30, lambda: not any(site.main_pid(name) for name in ("db", "other")))
        took = time.monotonic() - began
        results = [self.container.show(f"autossm@{name}", "Result")[0] for name in ("db", "other")]
        self.shows(results == ["success"] * 2, f"stop took {took:.2f} s: {results}")
        more = len(site.journal("-u", "autossm@*", "-g", "SIGKILL|status=9/KILL")) - kills
        self.shows(more == 0, f"{more} processes met SIGKILL")
        probe = self.connect(PORTS["db"])
        self.shows(probe == "refused", f"a client is {probe}")
        self.shows(not site.plugins(), f"{len(site.plugins())} plugins")
        self.shows(not site.lab.sessions(), f"{len(site.lab.sessions())} sessions at the service")
        sockets = site.run("find", "/run/autossm", "-type", "s").stdout.split()
        self.shows(not sockets, f"{len(sockets)} socket files")

    # Boot

    def reboot(self):
        self.site.close_account()
        self.container.shut_down()
        state = self.container.boot()
        self.site.open_account()
        return state

    def boot_again(self):
        state = self.reboot()
        links = self.site.run("ls", "/run/systemd/generator/autossm.target.wants").stdout.split()
        self.shows(links == ["autossm@db.service", "autossm@other.service"], f"wanted at boot: {' '.join(links)} ({state})")
        # The account has other addresses now.
        self.site.configure()
        self.systemctl("restart", "autossm.target")
        for name in ("db", "other"):
            self.site.wait_up(name)
        bad = [client for client in self.quiet_load(1) if client[2]]
        self.shows(not bad, "traffic flows")

    def boot_with_a_bad_file(self):
        self.site.write_configuration("[[tunnel]]\nname = \"db\"\nlisten = 3\n")
        state = self.reboot()
        failed = self.site.run("systemctl", "--failed", "--plain", "--no-legend").stdout.split("\n")
        names = [line.split()[0] for line in failed if line]
        self.shows(state in ("running", "degraded") and names == ["autossm-config.service"], f"{state}; failed: {names}")
        status = self.site.run("systemctl", "status", "--no-pager", "--full", "autossm-config", check=False).stdout
        shown = [line.split("]: ", 1)[-1] for line in status.splitlines() if "config.toml:3:10" in line]
        self.shows(bool(shown), f"its status shows {shown[:1]}")
        self.site.configure()
        self.systemctl("daemon-reload")
        self.systemctl("restart", "autossm-config", "autossm.target")
        self.site.wait_up()
        state = self.site.run("systemctl", "is-system-running", check=False).stdout.strip()
        self.shows(state == "running", f"the file put right: {state}, db {self.state('db')}")

    def remove(self):
        site = self.site
        site.run("dpkg", "--remove", "autossm")
        self.shows(not site.plugins() and not site.lab.sessions(), "removed: no plugin, no session")
        self.shows(self.connect(PORTS["db"]) == "refused", "removed: clients are refused")
        self.shows(site.run("test", "-e", "/etc/autossm/config.toml", check=False).returncode == 0, "removed: the file stays")
        site.run("rm", "-r", "/etc/autossm/aws-credentials")
        site.run("dpkg", "--purge", "autossm")
        left = site.run("find", "/etc/autossm", "/var/lib/autossm", "/run/autossm", "/usr", "-name", "*autossm*", check=False)
        self.shows(not left.stdout.strip(), f"purged: nothing is left {left.stdout.split()}")
        state = site.run("systemctl", "is-system-running", check=False).stdout.strip()
        self.shows(state == "running", f"the machine is {state}")

    def rpm_lists_the_same(self):
        root = self.container.folder / "rpm"
        options = ["--nodeps", "--noscripts", "--ignorearch", "--ignoreos"]
        subprocess.run(["rpm", "--root", root, "--install", *options, self.rpm.absolute()], check=True)
        listed = subprocess.run(["rpm", "--root", root, "-ql", "autossm"], check=True, capture_output=True, text=True)
        there = {"/" + str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        deb = subprocess.run(["dpkg-deb", "--fsys-tarfile", self.packages[0]], check=True, capture_output=True)
        listing = subprocess.run(["tar", "-t"], input=deb.stdout, check=True, capture_output=True).stdout.decode()
        of_deb = {line.removeprefix(".") for line in listing.splitlines() if not line.endswith("/")}
        of_rpm = set(listed.stdout.split())
        self.shows(of_rpm <= there, f"the .rpm installs its {len(of_rpm)} files")
        # Each distribution's own ways: pages are packed, and zsh has two folders.
        same = {path.removesuffix(".gz").replace("zsh/vendor-completions", "zsh/site-functions") for path in of_deb}
        same.discard("/usr/share/doc/autossm/copyright")
        self.shows(same == of_rpm, f"and lists what the .deb lists {sorted(same ^ of_rpm) or ''}")

    # Words of operators

    def systemctl(self, *words):
        quiet = {"is-enabled", "is-active", "reset-failed"}
        return self.site.run("systemctl", *words, check=words[0] not in quiet).stdout.strip()

    def unit_found(self, name, verdict):
        """What doctor says of a tunnel's unit, if it is of this weight."""
        checks = json.loads(self.site.run("autossm", "doctor", name, "--json", check=False).stdout)
        return next((found for found in checks if found["check"] == "unit" and found["verdict"] == verdict), None)

    def state(self, name):
        return self.container.show(f"autossm@{name}", "ActiveState")[0]

    def connect(self, port):
        script = "import socket,sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
        done = subprocess.run(
            self.container.in_network("python3", "-c", script, port), capture_output=True, text=True
        )
        return "refused" if "ConnectionRefusedError" in done.stderr else "served" if done.returncode == 0 else done.stderr

    def ask(self, path):
        """Status and body of what autossm web answers; 0 while it does not."""
        script = (
            "import sys, urllib.error, urllib.request as r\n"
            "try: answer = r.urlopen('http://127.0.0.1:9464' + sys.argv[1], timeout=10)\n"
            "except urllib.error.HTTPError as error: answer = error\n"
            "except OSError: sys.exit('0\\n')\n"
            "print(answer.status, answer.read().decode(), sep='\\n')"
        )
        done = subprocess.run(self.container.in_network("python3", "-c", script, path), capture_output=True, text=True)
        status, _, body = done.stdout.partition("\n")
        return int(status or 0), body

    def unix_echo(self):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(f"/proc/{self.container.leader}/root/run/autossm/db/clients.sock")
            client.sendall(b"echo")
            return client.recv(4)

    def quiet_load(self, seconds):
        load = Load(self.site)
        time.sleep(seconds)
        return load.finish()


def wait_for_few(site, count):
    """The sessions at the service, when no more than so many are left."""
    try:
        wait("sessions to end", 20, lambda: len(site.lab.sessions()) == count)
    except TimeoutError:
        pass
    return site.lab.sessions()


if __name__ == "__main__":
    # Whatever ends this, the container goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    rootfs, packages, programs = map(Path, sys.argv[1:])
    sys.exit(not Scenarios(rootfs, packages, programs).run())
