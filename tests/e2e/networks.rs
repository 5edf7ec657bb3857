//! Corporate networks: a proxy before everything, private and special names of the service, no IPv4. Nothing but the
//! environment says so; the names are the service's own.

use std::net::SocketAddr;
use std::path::Path;

use autossm_lab::Lab;
use autossm_lab::options::Options;
use autossm_lab::proxy::Proxy;
use nix::unistd::Pid;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::daemon::{Daemon, PATIENCE, PROGRAM, own_address, plugin, plugins};
use crate::observe::quiet;

const USER: &str = "corp:p@ss word";
const ENCODED: &str = "corp:p%40ss%20word";

/// The service of one region, behind a proxy.
async fn network(region: &str, stream_host: Option<&str>) -> (Lab, Proxy) {
    let stream_host = stream_host.map(str::to_owned);
    let options = Options { region: region.into(), stream_host, ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let proxy = Proxy::start(lab.addresses().tls, Some(USER)).await.unwrap();
    (lab, proxy)
}

/// A tunnel that names nothing but its region and these keys.
fn config(lab: &Lab, region: &str, address: SocketAddr, keys: &str) -> String {
    config_by(&plugin(), lab, region, address, keys)
}

fn config_by(plugin: &Path, lab: &Lab, region: &str, address: SocketAddr, keys: &str) -> String {
    format!(
        "[[tunnel]]\nname = \"echo\"\nlisten = \"{address}\"\ntarget = \"i-0123456789abcdef0\"\nremote_host = \"{}\"\n\
         remote_port = {}\nregion = \"{region}\"\nplugin = \"{}\"\n{keys}\n",
        lab.echo_addr().ip(),
        lab.echo_addr().port(),
        plugin.display(),
    )
}

fn behind(lab: &Lab, user: &str, proxy: &Proxy) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear();
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    command
        .env("HTTPS_PROXY", format!("http://{user}{}", proxy.address()))
        .env("AWS_CA_BUNDLE", lab.ca_file());
    command
}

async fn echo(address: SocketAddr) {
    ping(&mut TcpStream::connect(address).await.unwrap()).await;
}

async fn ping(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo").unwrap();
    assert_eq!(&back, b"ping");
}

/// Up, through an hourly close, and down again, by these names.
async fn goes_by(
    plugin: &Path,
    region: &str,
    variable: Option<&str>,
    keys: &str,
    api: &str,
    stream: &str,
    url: Option<&str>,
) {
    let (lab, proxy) = network(region, url).await;
    let mut command = behind(&lab, ENCODED, &proxy);
    if let Some(variable) = variable {
        command.env(variable, "true");
    }
    let address = own_address();
    let daemon = Daemon::start_with(command, address, &config_by(plugin, &lab, region, address, keys));
    daemon.event("ready").await;
    echo(address).await;
    if keys.contains("observe") {
        quiet().await;
    }
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    echo(address).await;
    let status = lab.status();
    assert_eq!((status.unsigned_calls, status.wrong_hosts), (0, 0), "{region}");
    // Plugins before 1.2.764.0 do not sign, where they speak for themselves.
    assert!(status.unsigned_upgrades == 0 || keys.contains("observe"), "{region}");
    let log = daemon.stop(&lab).await;
    let mut names = proxy.asked();
    names.sort();
    names.dedup();
    let mut expected = [format!("{api}:443"), format!("{stream}:443")];
    expected.sort();
    assert_eq!(names, expected, "{region}");
    for secret in ["p@ss word", "p%40ss", "Y29ycDpwQHNzIHdvcmQ"] {
        assert!(!log.iter().any(|line| line.text.contains(secret)), "the proxy's password in the log");
    }
    println!("{region} {variable:?} {keys}: {}, {}", names.join(", "), plugin.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_through_the_proxy_by_its_own_name() {
    let west = "us-west-2";
    for (region, variable, api, stream) in [
        (west, None, "ssm.us-west-2.amazonaws.com", "ssmmessages.us-west-2.amazonaws.com"),
        (
            west,
            Some("AWS_USE_FIPS_ENDPOINT"),
            "ssm-fips.us-west-2.amazonaws.com",
            "ssmmessages-fips.us-west-2.amazonaws.com",
        ),
        (west, Some("AWS_USE_DUALSTACK_ENDPOINT"), "ssm.us-west-2.api.aws", "ssmmessages.us-west-2.api.aws"),
        ("us-gov-west-1", None, "ssm.us-gov-west-1.amazonaws.com", "ssmmessages.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", None, "ssm.cn-north-1.amazonaws.com.cn", "ssmmessages.cn-north-1.amazonaws.com.cn"),
    ] {
        goes_by(&plugin(), region, variable, "", api, stream, Some(stream)).await;
    }
}

/// The plugin calls KMS, and knows of the environment only what it is told. In observe mode it does so by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kms_is_called_by_the_name_that_is_asked_for() {
    let region = "us-west-2";
    let observe = "gateway = \"observe\"";
    for (variable, kms, keys) in [
        (None, "kms.us-west-2.amazonaws.com", ""),
        (Some("AWS_USE_FIPS_ENDPOINT"), "kms-fips.us-west-2.amazonaws.com", ""),
        (Some("AWS_USE_DUALSTACK_ENDPOINT"), "kms.us-west-2.api.aws", ""),
        (None, "kms.us-west-2.amazonaws.com", observe),
        (Some("AWS_USE_FIPS_ENDPOINT"), "kms-fips.us-west-2.amazonaws.com", observe),
    ] {
        let kms_key =
            Some("arn:aws:kms:us-west-2:111122223333:key/01234567-89ab-cdef-0123-456789abcdef".into());
        let lab = Lab::start(Options { region: region.into(), kms_key, ..Options::default() }).await.unwrap();
        let proxy = Proxy::start(lab.addresses().tls, Some(USER)).await.unwrap();
        let mut command = behind(&lab, ENCODED, &proxy);
        if let Some(variable) = variable {
            command.env(variable, "true");
        }
        let address = own_address();
        let daemon = Daemon::start_with(command, address, &config(&lab, region, address, keys));
        daemon.event("ready").await;
        echo(address).await;
        let asked: Vec<_> = proxy.asked().into_iter().filter(|name| name.starts_with("kms")).collect();
        println!("{variable:?}: {asked:?}");
        assert!(!asked.is_empty() && asked.iter().all(|name| *name == format!("{kms}:443")), "{asked:?}");
        let status = lab.status();
        assert_eq!((status.unsigned_calls, status.wrong_hosts), (0, 0));
        daemon.stop(&lab).await;
    }
}

/// The plugin makes its own connections there, through ours, and its own names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_only_watched_goes_through_the_proxy_too() {
    let west = "us-west-2";
    for plugin in plugins() {
        for (variable, api, stream) in [
            (None, "ssm.us-west-2.amazonaws.com", "ssmmessages.us-west-2.amazonaws.com"),
            (
                Some("AWS_USE_FIPS_ENDPOINT"),
                "ssm-fips.us-west-2.amazonaws.com",
                "ssmmessages-fips.us-west-2.amazonaws.com",
            ),
            (Some("AWS_USE_DUALSTACK_ENDPOINT"), "ssm.us-west-2.api.aws", "ssmmessages.us-west-2.api.aws"),
        ] {
            goes_by(&plugin, west, variable, "gateway = \"observe\"", api, stream, Some(stream)).await;
        }
    }
}

/// Cuts the plugin's connection for its data channel, as if the kernel had: it has to resume by itself.
fn cut_from_gateway(plugin: Pid) -> std::io::Result<()> {
    let connections = procfs::net::tcp().unwrap();
    let plugin = Process::new(plugin.as_raw()).unwrap();
    let handle = pidfd_open(rustix::process::Pid::from_raw(plugin.pid).unwrap(), PidfdFlags::empty())?;
    for fd in plugin.fd().unwrap().flatten() {
        let FDTarget::Socket(inode) = fd.target else { continue };
        // Its clients come to it from the same host: of the gateway is what it has made itself, to a port on which it does not listen.
        let goes_out = connections.iter().any(|one| {
            one.inode == inode
                && one.remote_address.port() != 0
                && !connections.iter().any(|other| {
                    other.state == TcpState::Listen && other.local_address.port() == one.local_address.port()
                })
        });
        if goes_out {
            let socket = pidfd_getfd(&handle, fd.fd, PidfdGetfdFlags::empty())?;
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both)?;
        }
    }
    Ok(())
}

/// In hold mode its call is answered by the gateway, whichever name the plugin makes; were it to fail, the session would be
/// lost with all its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_mends_its_own_connection_under_every_name() {
    for plugin in plugins() {
        for variable in [None, Some("AWS_USE_FIPS_ENDPOINT"), Some("AWS_USE_DUALSTACK_ENDPOINT")] {
            let (lab, proxy) = network("us-west-2", None).await;
            let mut command = behind(&lab, ENCODED, &proxy);
            if let Some(variable) = variable {
                command.env(variable, "true");
            }
            let address = own_address();
            let config = config_by(&plugin, &lab, "us-west-2", address, "");
            let daemon = Daemon::start_with(command, address, &config);
            daemon.event("ready").await;
            let mut client = TcpStream::connect(address).await.unwrap();
            ping(&mut client).await;
            // All is acknowledged: what a plugin sends while it has no connection is its end.
            lab.wait_for("quiet", PATIENCE, |status| {
                status.sessions.values().all(|session| session.unacknowledged == 0)
            })
            .await
            .unwrap();
            let before = daemon.plugin().await;
            if let Err(error) = cut_from_gateway(before) {
                daemon.stop(&lab).await;
                return crate::tools::missing(&format!(
                    "a plugin that loses its connection: this user may not reach into another process ({error})"
                ));
            }
            daemon
                .logged("the plugin's second data channel", |log| {
                    let opened = "the plugin has opened its data channel";
                    log.iter().filter(|line| line.fields["message"] == opened).count() == 2
                })
                .await;
            ping(&mut client).await;
            assert_eq!(daemon.plugin().await, before, "{plugin:?} {variable:?}");
            let status = lab.status();
            assert_eq!((status.start.processed, status.resume.processed, status.opened), (1, 0, 1));
            daemon.stop(&lab).await;
        }
    }
}

/// Neither AWS's SDK nor the plugin's makes a call with both; nothing but a change helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_and_other_names_exclude_each_other() {
    let lab = Lab::start(Options::default()).await.unwrap();
    for (variable, words) in [
        ("AWS_USE_FIPS_ENDPOINT", "`endpoint_url` and FIPS names (AWS_USE_FIPS_ENDPOINT in the environment)"),
        (
            "AWS_USE_DUALSTACK_ENDPOINT",
            "`endpoint_url` and dual-stack names (AWS_USE_DUALSTACK_ENDPOINT in the",
        ),
    ] {
        let address = own_address();
        let keys = format!("endpoint_url = \"{}\"", lab.api_url());
        let mut command = Command::new(PROGRAM);
        command.env_clear().env(variable, "true");
        let daemon = Daemon::start_with(command, address, &config(&lab, "us-west-2", address, &keys));
        let failed = daemon.event("failed").await;
        assert_eq!(failed.field("class"), "needs a change", "{}", failed.text);
        assert!(failed.field("reason").starts_with(words), "{}", failed.text);
        daemon.stop(&lab).await;
    }
    assert_eq!(lab.status().start.processed, 0);
}

/// A VPC endpoint without private DNS has names of its own; the stream URL's host stays in the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vpc_endpoints_go_by_their_names() {
    let (api, stream) = (
        "vpce-0a1b2c3d-4e5f.ssm.us-west-2.vpce.amazonaws.com",
        "vpce-0f9e8d7c-6b5a.ssmmessages.us-west-2.vpce.amazonaws.com",
    );
    let keys = format!("endpoint_url = \"https://{api}\"\nstream_endpoint = \"wss://{stream}\"");
    goes_by(&plugin(), "us-west-2", None, &keys, api, stream, None).await;
}

/// The proxy itself is spoken to over TLS, and TLS with the service goes through that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_may_speak_tls() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let proxy = Proxy::start_tls(&lab, Some(USER)).await.unwrap();
    let address = own_address();
    let text = config(&lab, "us-west-2", address, "");
    let command = |scheme: &str| {
        let mut command = behind(&lab, ENCODED, &proxy);
        let url = format!("{scheme}://{ENCODED}@localhost:{}", proxy.address().port());
        command.env("HTTPS_PROXY", url);
        command
    };
    let daemon = Daemon::start_with(command("https"), address, &text);
    daemon.event("ready").await;
    echo(address).await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    echo(address).await;
    assert_eq!((lab.status().unsigned_calls, lab.status().wrong_hosts), (0, 0));
    daemon.stop(&lab).await;
    assert!(proxy.asked().len() >= 3, "API and data channel: {:?}", proxy.asked());
    // Without TLS it does not understand a word.
    let daemon = Daemon::start_with(command("http"), address, &text);
    let failed = daemon.event("failed").await;
    assert!(failed.field("reason").contains("the proxy localhost:"), "{}", failed.text);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxys_refusal_is_told_with_what_to_do() {
    let (lab, proxy) = network("us-west-2", None).await;
    let address = own_address();
    let text = config(&lab, "us-west-2", address, "");
    let refused = async |user: &str, refusal, class: &str, words: &str| {
        proxy.refuse(refusal);
        let daemon = Daemon::start_with(behind(&lab, user, &proxy), address, &text);
        let failed = daemon.event("failed").await;
        assert_eq!(failed.field("class"), class, "{}", failed.text);
        assert!(failed.field("reason").contains(words), "{}", failed.text);
        assert!(!failed.text.contains("p%40ss") && !failed.text.contains("p@ss"), "{}", failed.text);
        daemon.stop(&lab).await;
    };
    refused("", None, "access", "set HTTPS_PROXY to http://USER:PASSWORD@HOST:PORT").await;
    refused("corp:wrong", None, "access", "does not accept the user and password").await;
    refused(
        ENCODED,
        Some((403, "Forbidden")),
        "access",
        "refused a connection to ssm.us-west-2.amazonaws.com:443",
    )
    .await;
    refused(ENCODED, Some((503, "Service Unavailable")), "network or service", "503 Service Unavailable")
        .await;
    assert_eq!(lab.status().start.processed, 0);
}

/// In the middle of a session: the channel stays down, the reason is told, and it is resumed when the proxy lets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_for_a_while_costs_no_session() {
    let (lab, proxy) = network("us-west-2", None).await;
    let address = own_address();
    let daemon =
        Daemon::start_with(behind(&lab, ENCODED, &proxy), address, &config(&lab, "us-west-2", address, ""));
    daemon.event("ready").await;
    proxy.refuse(Some((503, "Service Unavailable")));
    lab.abort_all();
    let failed = daemon.event("resume_failed").await;
    assert!(failed.field("reason").contains("the proxy 127.0.0.1:"), "{}", failed.text);
    proxy.refuse(None);
    daemon.event("resumed").await;
    echo(address).await;
    assert_eq!(lab.status().start.processed, 1);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_cannot_be_read_is_named() {
    let (lab, proxy) = network("us-west-2", None).await;
    let mut command = behind(&lab, ENCODED, &proxy);
    command.env("AWS_CA_BUNDLE", "/nonexistent/corporate.pem");
    let address = own_address();
    let daemon = Daemon::start_with(command, address, &config(&lab, "us-west-2", address, ""));
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "needs a change", "{}", failed.text);
    assert!(failed.field("reason").contains("AWS_CA_BUNDLE /nonexistent/corporate.pem"), "{}", failed.text);
    daemon.stop(&lab).await;
}

const INSIDE: &str = "AUTOSSM_TEST_IPV6_ONLY";
const SERVICE: &str = "fd00:5357::1";

/// A host with no address of IPv4 but 127.0.0.1: the names of the service have addresses of IPv6 alone. In a network and a
/// table of names of its own, which takes root.
#[test]
fn a_host_with_ipv6_alone_is_as_good() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(on_ipv6_alone());
    }
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let names = "ssm.us-west-2.amazonaws.com ssmmessages.us-west-2.amazonaws.com";
    std::fs::write(&hosts, format!("::1 localhost\n127.0.0.1 localhost\n{SERVICE} {names}\n")).unwrap();
    // Without `nodad` the address is tentative, and not to be bound, until the kernel comes round to it.
    let prepare = format!(
        "mount --bind {} /etc/hosts && ip link set lo up && ip addr add {SERVICE}/128 dev lo nodad",
        hosts.display()
    );
    let possible = std::process::Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &prepare])
        .output()
        .is_ok_and(|output| output.status.success());
    if !possible {
        return crate::tools::missing(
            "a network of its own takes root, `unshare` and `ip` (apt-get install iproute2)",
        );
    }
    let output = std::process::Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c"])
        .arg(format!(
            "{prepare} && exec \"$0\" --exact networks::a_host_with_ipv6_alone_is_as_good --nocapture"
        ))
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

async fn on_ipv6_alone() {
    let options =
        Options { tls_address: Some(format!("[{SERVICE}]:443").parse().unwrap()), ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("AWS_CA_BUNDLE", lab.ca_file());
    let address: SocketAddr = "[::1]:15432".parse().unwrap();
    let daemon = Daemon::start_with(command, address, &config(&lab, "us-west-2", address, ""));
    daemon.event("ready").await;
    echo(address).await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    echo(address).await;
    println!("IPv6 alone: listener, API and data channel");
    daemon.stop(&lab).await;
}
