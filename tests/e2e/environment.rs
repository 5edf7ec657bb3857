//! Empty variables in the daemon's environment: they are as good as none.

use std::sync::Arc;

use autossm_lab::Lab;
use autossm_lab::options::Options;
use tokio::process::Command;

use crate::daemon::{Daemon, Line, PROGRAM, folder, own_address, tunnel};

/// What the SDK, its providers of credentials and the daemon itself read.
const READ: [&str; 36] = [
    "AWS_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_ACCOUNT_ID",
    "AWS_ACCOUNT_ID_ENDPOINT_MODE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_SSM",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_SIGV4A_SIGNING_REGION_SET",
    "AWS_AUTH_SCHEME_PREFERENCE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_LOG",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "AUTOSSM_CONFIG",
];

/// The region is in `AWS_DEFAULT_REGION`, the keys in the default profile's file.
fn start(lab: &Lab, empty: &[&str]) -> Daemon {
    let folder = folder();
    std::fs::create_dir(folder.path().join(".aws")).unwrap();
    let keys = "[default]\naws_access_key_id = AKIDOFTHEFILE\naws_secret_access_key = secret\n";
    std::fs::write(folder.path().join(".aws/credentials"), keys).unwrap();
    let address = own_address();
    let config = tunnel(lab, "echo", address, lab.echo_addr(), "").replace("region = \"us-west-2\"\n", "");
    let mut program = Command::new(PROGRAM);
    program.env_clear().env("HOME", folder.path()).env("AWS_DEFAULT_REGION", "us-west-2");
    // Else the harness gives it keys.
    program.env("AWS_ACCESS_KEY_ID", "");
    for name in empty {
        program.env(name, "");
    }
    Daemon::spawn(program, folder, "trace", address, &config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_variables_are_as_good_as_none() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = start(&lab, &READ);
    daemon.event("ready").await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    let pid = daemon.pid();
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let left: Vec<_> = environ.split('\0').filter(|variable| variable.ends_with('=')).collect();
    assert_eq!((comm.trim(), left), ("autossm", vec![]), "the same process, without them");
    daemon.stop(&lab).await;
}

/// Each by itself: what one of them brings about may be hidden by another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_empty_variable_makes_a_difference() {
    let lab = Lab::start(Options::default()).await.unwrap();
    for names in READ.chunks(6) {
        let daemons: Vec<_> = names.iter().map(|name| start(&lab, &[name])).collect();
        for (name, daemon) in names.iter().zip(&daemons) {
            let ends = |line: &Arc<Line>| matches!(line.field("event"), "ready" | "failed");
            daemon.logged(name, |log| log.iter().any(ends)).await;
            let failed = daemon.events("failed");
            assert!(failed.is_empty(), "{name}: {}", failed[0].text);
        }
        for daemon in daemons {
            daemon.end().await;
        }
    }
    assert_eq!(lab.status().sessions.len(), 0);
}
