//! `autossm doctor`: with all fine it finds nothing, and of each thing that is broken it names that, what to do, and nothing
//! else.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::{Node, Options};
use serde_json::Value;
use tokio::process::Command;

use crate::daemon::{Daemon, PATIENCE, PROGRAM, SECRET_KEY, folder, own_address, tunnel};

pub const NODE: &str = "i-0123456789abcdef0";
/// For few files, as shells often have a limit of 1024 of them.
const FEW: &str = "max_connections = 100";

/// What doctor has said.
pub struct Said {
    pub code: i32,
    pub text: String,
    checks: Vec<Value>,
}

impl Said {
    /// Checks with this verdict, but for the plugin's that was built from source, which says no version.
    pub fn with(&self, verdict: &str) -> Vec<&Value> {
        let from_source = |check: &Value| message(check).contains("built from source");
        self.checks.iter().filter(|check| check["verdict"] == verdict && !from_source(check)).collect()
    }

    /// All that is amiss, as `check verdict`.
    fn amiss(&self) -> BTreeSet<String> {
        let amiss = self.with("failure").into_iter().chain(self.with("warning"));
        amiss
            .map(|check| {
                format!("{} {}", check["check"].as_str().unwrap(), check["verdict"].as_str().unwrap())
            })
            .collect()
    }

    fn messages(&self, check: &str) -> String {
        let of = self.checks.iter().filter(|found| found["check"] == check);
        of.map(|found| message(found).to_owned() + "\n").collect()
    }
}

pub fn message(check: &Value) -> &str {
    check["message"].as_str().unwrap()
}

pub fn doctor(program: Command, folder: &Path) -> Command {
    let mut command = program;
    command.args(["doctor", "--json", "--runtime-dir"]).arg(folder.join("run"));
    command.arg("--config").arg(folder.join("config.toml")).kill_on_drop(true).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder);
    command.env("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTESTTEST").env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

pub async fn say(mut command: Command) -> Said {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains(SECRET_KEY) && !err.contains(SECRET_KEY), "{text}");
    let checks = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{err}"));
    Said { code: output.status.code().unwrap(), text, checks }
}

async fn lab(options: Options) -> Lab {
    let lab = Lab::start(options).await.unwrap();
    lab.set_node(Node { id: NODE.into(), online: true, tags: [("Role".into(), "bastion".into())].into() });
    lab
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finds_nothing_where_all_is_well() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let address = own_address();
    std::fs::write(folder.path().join("config.toml"), tunnel(&lab, "echo", address, lab.echo_addr(), FEW))
        .unwrap();
    let before = say(doctor(Command::new(PROGRAM), folder.path())).await;
    assert_eq!((before.code, before.amiss()), (0, BTreeSet::new()), "{}", before.text);
    assert!(before.messages("listen").contains(&format!("{address} is free")), "{}", before.text);
    assert!(before.messages("identity").contains("account 111122223333"));
    assert!(
        before
            .messages("permission")
            .contains("ssm:StartSession, ssmmessages:OpenDataChannel: cannot be tried")
    );
    // A session cannot be tried, the daemon does not run yet, and not every host has systemd and the units.
    let left_out: BTreeSet<_> =
        before.with("skipped").iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert!(left_out.is_subset(&["permission", "daemon", "systemd", "unit"].into()), "{}", before.text);
    let looked_at: BTreeSet<_> =
        before.with("ok").iter().map(|check| check["check"].as_str().unwrap()).collect();
    for check in
        ["configuration", "limits", "api", "data-channel", "clock", "credentials", "identity", "permission"]
    {
        assert!(looked_at.contains(check), "{check} is missing: {}", before.text);
    }
    for check in ["listen", "target", "document", "timeouts"] {
        assert!(looked_at.contains(check), "{check} is missing: {}", before.text);
    }
    assert_eq!(lab.status().start.processed, 0, "no session is started");

    let daemon = Daemon::echo(&lab, FEW).await;
    let session = lab.sessions();
    let said = say(doctor(Command::new(PROGRAM), daemon.folder.path())).await;
    assert_eq!((said.code, said.amiss()), (0, BTreeSet::new()), "{}", said.text);
    let pid = daemon.pid();
    let held = format!("{} is held by autossm (pid {pid})", daemon.address);
    assert!(said.messages("listen").contains(&held), "{}", said.text);
    assert!(
        said.messages("limits").contains(&format!("the daemon with pid {pid} may open")),
        "{}",
        said.text
    );
    assert!(said.messages("permission").contains("allowed; echo has a session"), "{}", said.text);
    assert_eq!(lab.sessions(), session, "the tunnel's own session goes on");

    let mut for_people = Command::new(PROGRAM);
    for_people.args(["doctor", "echo", "--runtime-dir"]).arg(daemon.folder.path().join("run"));
    for_people.arg("--config").arg(daemon.folder.path().join("config.toml")).env_clear();
    for_people.env("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTESTTEST").env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    let shown = String::from_utf8(for_people.output().await.unwrap().stdout).unwrap();
    for part in [
        "host\n  ok       configuration ",
        "\nAWS us-west-2 (echo)\n",
        "\ntunnel echo\n",
        "  ok       clock ",
    ] {
        assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
    }
    daemon.stop(&lab).await;
}

/// One thing that is broken.
struct Row {
    name: &'static str,
    /// Further keys of the tunnel.
    keys: String,
    options: Options,
    faults: Vec<Fault>,
    /// Of the configuration's text.
    edit: fn(String) -> String,
    node: fn(&Lab),
    /// By which the program is run.
    program: fn() -> Command,
    credentials: bool,
    /// As `check verdict`.
    expected: &'static str,
    /// In the message, and in the remedy.
    words: (&'static str, &'static str),
}

impl Row {
    fn new(name: &'static str, expected: &'static str, words: (&'static str, &'static str)) -> Self {
        Self {
            name,
            keys: FEW.to_owned(),
            options: Options::default(),
            faults: Vec::new(),
            edit: |text| text,
            node: |_| (),
            program: || Command::new(PROGRAM),
            credentials: true,
            expected,
            words,
        }
    }

    fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    fn keys(mut self, keys: &str) -> Self {
        self.keys += &format!("\n{keys}");
        self
    }

    fn edit(self, edit: fn(String) -> String) -> Self {
        Self { edit, ..self }
    }

    async fn run(self) {
        let lab = lab(self.options).await;
        (self.node)(&lab);
        for fault in self.faults {
            lab.set(fault);
        }
        let folder = folder();
        let config = (self.edit)(tunnel(&lab, "echo", own_address(), lab.echo_addr(), &self.keys));
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut command = doctor((self.program)(), folder.path());
        if !self.credentials {
            command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        }
        let said = say(command).await;
        let name = self.name;
        assert_eq!(said.amiss(), BTreeSet::from([self.expected.to_owned()]), "{name}: {}", said.text);
        let found = [said.with("failure"), said.with("warning")].concat();
        assert_eq!(found.len(), 1, "{name}: {}", said.text);
        assert!(message(found[0]).contains(self.words.0), "{name}: {:#}", found[0]);
        assert!(found[0]["remedy"].as_str().unwrap().contains(self.words.1), "{name}: {:#}", found[0]);
        assert_eq!(said.code, i32::from(self.expected.ends_with("failure")), "{name}");
        assert_eq!(lab.status().start.processed, 0, "{name}: no session is started");
    }
}

fn replaced(text: &str, key: &str, value: &str) -> String {
    let line = |line: &str| match line.starts_with(&format!("{key} = ")) {
        true => format!("{key} = {value}\n"),
        false => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_what_is_broken_and_only_that() {
    let denied = |call| Fault::Api(call, ApiFault::Denied);
    let old_agent = |version: &str| Options { agent_version: version.to_owned(), ..Options::default() };
    let rows = [
        Row::new("plugin missing", "plugin failure", ("/nonexistent/smp is no program", "install AWS's"))
            .edit(|text| replaced(&text, "plugin", "\"/nonexistent/smp\"")),
        Row::new("a mistake in the file", "configuration failure", ("max_conections", "max_connections"))
            .edit(|text| text.replace("max_connections", "max_conections")),
        Row {
            credentials: false,
            ..Row::new("no credentials", "credentials failure", ("no AWS credentials", "AWS_ACCESS_KEY_ID"))
        },
        Row::new("credentials expired", "identity failure", ("expired", ""))
            .fault(Fault::Api(Call::CallerIdentity, ApiFault::Expired)),
        Row::new(
            "ResumeSession denied",
            "permission warning",
            ("ssm:ResumeSession: refused", "allow ssm:ResumeSession"),
        )
        .fault(denied(Call::Resume)),
        Row::new(
            "TerminateSession denied",
            "permission warning",
            ("ssm:TerminateSession: refused", "allow ssm:TerminateSession"),
        )
        .fault(denied(Call::Terminate)),
        Row::new(
            "GetDocument denied",
            "permission warning",
            ("ssm:GetDocument: GetDocument: AccessDenied", "allow ssm:GetDocument"),
        )
        .keys("rotate = \"auto\"")
        .fault(denied(Call::GetDocument)),
        Row::new(
            "DescribeInstanceInformation denied",
            "permission failure",
            ("ssm:DescribeInstanceInformation: Desc", "allow ssm:DescribeInstanceInformation"),
        )
        .edit(|text| replaced(&text, "target", "{ tag = \"Role=bastion\" }"))
        .fault(denied(Call::DescribeNodes)),
        Row::new("clock an hour behind", "clock failure", ("s behind", "NTP")).fault(Fault::Clock(3600)),
        Row::new("clock a minute ahead", "clock warning", ("s ahead", "NTP")).fault(Fault::Clock(-60)),
        Row {
            node: |lab| lab.set_node(Node { id: NODE.into(), online: false, tags: [].into() }),
            ..Row::new("target offline", "target failure", ("is not online", "start the node"))
        },
        Row::new(
            "no such target",
            "target failure",
            ("i-00000000 is no managed node in us-west-2", "region"),
        )
        .edit(|text| replaced(&text, "target", "\"i-00000000\"")),
        Row::new("one target of two offline", "target warning", ("i-00000000 is no managed", "region"))
            .edit(|text| replaced(&text, "target", &format!("[\"i-00000000\", \"{NODE}\"]"))),
        Row::new("nobody has the tag", "target failure", ("tag Role=none: no managed node", "tag"))
            .edit(|text| replaced(&text, "target", "{ tag = \"Role=none\" }")),
        Row {
            options: old_agent("3.1.1000.0"),
            ..Row::new(
                "agent too old for a remote host",
                "agent failure",
                ("agent 3.1.1000.0 cannot", "update amazon-ssm-agent"),
            )
        },
        Row {
            options: old_agent("3.0.100.0"),
            ..Row::new("agent without mux", "agent warning", ("one connection", "update"))
        }
        .edit(|text| {
            text.lines()
                .filter(|line| !line.starts_with("remote_host"))
                .map(|line| format!("{line}\n"))
                .collect()
        }),
        Row::new("no such document", "document failure", ("Own-Forward does not exist", "create it"))
            .keys("document = \"Own-Forward\""),
        Row::new("API away", "api failure", ("127.0.0.1:1 cannot be reached", "let this host out"))
            .edit(|text| replaced(&text, "endpoint_url", "\"http://127.0.0.1:1\"")),
        Row::new(
            "data channels away",
            "data-channel failure",
            ("127.0.0.1:1 cannot be reached", "let this host out"),
        )
        .edit(|text| replaced(&text, "stream_endpoint", "\"ws://127.0.0.1:1\"")),
        Row {
            program: || {
                let mut shell = Command::new("sh");
                shell.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\"", PROGRAM]);
                shell
            },
            ..Row::new("file limit too low", "limits warning", ("may open 200 files", "LimitNOFILE"))
        },
        Row::new("keep-alive too late", "timeouts warning", ("after 1m", "keepalive"))
            .keys("keepalive = \"5m\"")
            .fault(Fault::IdleTimeout(Duration::from_secs(60))),
        Row::new("never rotated", "timeouts warning", ("after 1h0m, with its open", "rotate = \"auto\""))
            .keys("rotate = \"off\"")
            .fault(Fault::MaximumLife(Duration::from_secs(3600))),
    ];
    for row in rows {
        row.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_whoever_holds_the_port_and_a_plugin_that_is_too_old() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let address: SocketAddr = own_address();
    let _held = TcpListener::bind(address).unwrap();
    let old = folder.path().join("old");
    std::fs::write(&old, "#!/bin/sh\necho 1.2.500.0\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), FEW);
    let config = replaced(&config, "plugin", &format!("\"{}\"", old.display()));
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let said = say(doctor(Command::new(PROGRAM), folder.path())).await;
    assert_eq!(
        said.amiss(),
        BTreeSet::from(["listen failure".into(), "plugin failure".into()]),
        "{}",
        said.text
    );
    let pid = format!("(pid {})", std::process::id());
    let listen = said.messages("listen");
    assert!(listen.contains(&format!("{address} is taken by e2e")) && listen.contains(&pid), "{listen}");
    assert!(said.messages("plugin").contains("is version 1.2.500.0, older than"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_who_issued_a_certificate_that_is_not_trusted() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let config = tunnel(&lab, "echo", own_address(), lab.echo_addr(), FEW);
    let config = replaced(&config, "stream_endpoint", &format!("\"{}\"", lab.stream_endpoint_wss()));
    let untrusted = config.clone();
    std::fs::write(folder.path().join("config.toml"), untrusted).unwrap();
    let said = say(doctor(Command::new(PROGRAM), folder.path())).await;
    assert_eq!(said.amiss(), BTreeSet::from(["data-channel failure".to_owned()]), "{}", said.text);
    let message = said.messages("data-channel");
    assert!(message.contains("the certificate was issued by autossm lab"), "{message}");
    let trusted = format!("{config}ca_file = \"{}\"\n", lab.ca_file().display());
    std::fs::write(folder.path().join("config.toml"), trusted).unwrap();
    let said = say(doctor(Command::new(PROGRAM), folder.path())).await;
    assert_eq!(said.amiss(), BTreeSet::new(), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learns_from_the_daemon_that_start_session_is_denied() {
    let lab = lab(Options::default()).await;
    lab.set(Fault::Api(Call::Start, ApiFault::Denied));
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), FEW));
    daemon.status("a refusal", |status| status["failure"]["class"] == "access").await;
    let calls = lab.status().start.processed;
    let said = say(doctor(Command::new(PROGRAM), daemon.folder.path())).await;
    assert_eq!(
        said.amiss(),
        BTreeSet::from(["daemon warning".into(), "permission failure".into()]),
        "{}",
        said.text
    );
    assert!(
        said.messages("permission").contains("ssm:StartSession: the daemon of echo was refused"),
        "{}",
        said.text
    );
    assert!(lab.status().start.processed - calls <= 1, "only the daemon tries");
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_the_proxy_in_use_without_its_password() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let config = tunnel(&lab, "echo", own_address(), lab.echo_addr(), FEW);
    // The name is the proxy's to look up.
    let config = replaced(&config, "stream_endpoint", "\"wss://stream.invalid\"");
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let mut command = doctor(Command::new(PROGRAM), folder.path());
    command.env("HTTPS_PROXY", "http://me:hunter2@127.0.0.1:1");
    let said = say(command).await;
    assert_eq!(said.amiss(), BTreeSet::from(["data-channel failure".to_owned()]), "{}", said.text);
    let message = said.messages("data-channel");
    assert!(
        message.contains("stream.invalid:443 through the proxy 127.0.0.1:1 cannot be reached"),
        "{message}"
    );
    assert!(!said.text.contains("hunter2"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_in_time_where_nothing_answers() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let config = tunnel(&lab, "echo", own_address(), lab.echo_addr(), FEW);
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    lab.set(Fault::BlackHole);
    let began = Instant::now();
    let said = say(doctor(Command::new(PROGRAM), folder.path())).await;
    let both = BTreeSet::from(["api failure".to_owned(), "data-channel failure".to_owned()]);
    assert_eq!(said.amiss(), both, "{}", said.text);
    assert!(said.messages("api").contains("no answer within 10 s"), "{}", said.text);
    // Both at the same time, and nothing else that would hang is tried.
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
}

/// What belongs to others is not taken for broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_it_may_not_read() {
    let lab = lab(Options::default()).await;
    let folder = folder();
    let config = tunnel(&lab, "echo", own_address(), lab.echo_addr(), FEW);
    let path = folder.path().join("config.toml");
    std::fs::write(&path, config).unwrap();
    // Root reads it all the same, and asks as nobody.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // The program too lies where nobody can read it, on some hosts.
    let program = folder.path().join("autossm");
    std::fs::copy(PROGRAM, &program).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = doctor(Command::new(&program), folder.path());
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let said = say(command).await;
    assert_eq!(
        (said.code, said.amiss()),
        (77, BTreeSet::from(["configuration warning".to_owned()])),
        "{}",
        said.text
    );
    assert!(said.messages("configuration").contains("this user may not read"), "{}", said.text);
}
