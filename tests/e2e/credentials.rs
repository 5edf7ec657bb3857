//! Credentials that change under a running tunnel.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::load::Load;
use autossm_lab::metadata::Metadata;
use autossm_lab::options::Options;
use tokio::process::Command;

use crate::daemon::{Daemon, PROGRAM, folder, own_address, tunnel, until};
use crate::faults::KEYS;

/// A daemon that has no credentials but those of the profile `ops` in this folder.
fn start(lab: &Lab, profile: &str, keys: &str) -> (Daemon, std::sync::Arc<tempfile::TempDir>) {
    let folder = folder();
    std::fs::write(folder.path().join("aws"), profile).unwrap();
    let mut program = Command::new(PROGRAM);
    program.env_clear();
    let address = own_address();
    let config = tunnel(lab, "echo", address, lab.echo_addr(), &format!("profile = \"ops\"\n{KEYS}{keys}"));
    program
        .env("AWS_CONFIG_FILE", folder.path().join("none"))
        .env("AWS_SHARED_CREDENTIALS_FILE", folder.path().join("aws"));
    (Daemon::start_by(program, folder.clone(), address, &config), folder)
}

/// A `credential_process` that issues a key for `seconds` each time; the lab refuses it later. Writes a line for each.
fn issuer(folder: &Path, seconds: u32) -> String {
    let path = folder.join("issuer");
    let script = format!(
        "#!/bin/sh\nuntil=$(($(date +%s) + {seconds}))\necho $until >> {0}/issued\n\
         printf '{{\"Version\":1,\"AccessKeyId\":\"ASIAUNTIL%s\",\"SecretAccessKey\":\"s\",\"SessionToken\":\"t\",\
         \"Expiration\":\"%s\"}}' $until $(date -u -d @$until +%Y-%m-%dT%H:%M:%SZ)\n",
        folder.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("[ops]\ncredential_process = {}\n", path.display())
}

/// Three hours, of which each minute takes a third of a second: the service closes every hour, and the network breaks a
/// connection every ten minutes; credentials live a quarter of an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumes_for_three_hours_with_credentials_that_live_fifteen_minutes() {
    const MINUTE: Duration = Duration::from_millis(333);
    let lab = Lab::start(Options::default()).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let (daemon, _folder) = start(&lab, &issuer(place.path(), 5), "");
    daemon.event("ready").await;
    let load = Load::start(daemon.address, 10);
    let (began, mut closes, mut resumed) = (Instant::now(), 0, 0);
    for minute in (10..=180).step_by(10) {
        tokio::time::sleep((began + MINUTE * minute).saturating_duration_since(Instant::now())).await;
        let closed = match minute % 60 {
            0 => {
                closes += 1;
                lab.close_all(1000, "Bye")
            }
            _ => lab.abort_all(),
        };
        assert_eq!(closed, 1, "minute {minute}\n{}", daemon.tail());
        resumed += 1;
        daemon.event_times("resumed", resumed).await;
    }
    let seen = load.finish().await;
    let status = lab.status();
    let issued = std::fs::read_to_string(place.path().join("issued")).unwrap().lines().count();
    println!(
        "180 simulated minutes in {:.0} s, credentials of 15: {closes} hourly closes, {} aborts, ResumeSession {}× and \
         {} refused, {issued} keys issued, {} used after their time; {} connections, {} failed; long-lived cut {}×; \
         StartSession {}×",
        began.elapsed().as_secs_f64(),
        resumed - closes,
        status.resume.processed,
        status.resume.processed - status.resume.succeeded,
        status.expired_keys,
        seen.attempts.len(),
        seen.failures().count(),
        seen.long_lived.cuts.len(),
        status.start.processed,
    );
    assert_eq!((status.start.processed, status.expired_keys), (1, 0));
    assert_eq!(status.resume.processed, status.resume.succeeded);
    assert_eq!((seen.failures().count(), seen.long_lived.cuts.len()), (0, 0));
    assert!(issued >= 10, "they were renewed {issued} times");
    assert!(daemon.events("credentials_expiring").is_empty(), "they could always be renewed");
    daemon.stop(&lab).await;
}

/// The `credential_process` hangs for a while, as one that waits for a server of its own. Calls go on with the keys that are
/// still valid, and it is not started a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_process_that_hangs_takes_nothing_from_valid_keys() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let profile = issuer(place.path(), 3600);
    let script = std::fs::read_to_string(place.path().join("issuer")).unwrap();
    let (hang, begun) = (place.path().join("hang"), place.path().join("begun"));
    let hanging = format!(
        "#!/bin/sh\necho $$ >> {}\nwhile [ -e {} ]; do sleep 0.1; done\n",
        begun.display(),
        hang.display()
    );
    std::fs::write(place.path().join("issuer"), script.replace("#!/bin/sh\n", &hanging)).unwrap();
    let lines = |name: &str| std::fs::read_to_string(place.path().join(name)).unwrap().lines().count();
    let (daemon, folder) = start(&lab, &profile, "");
    daemon.event("ready").await;
    std::fs::write(&hang, "").unwrap();
    let mut took = Vec::new();
    for number in 1..=3 {
        // Somebody has written into the file: new keys are looked for.
        std::fs::write(folder.path().join("aws"), format!("{profile}#{}\n", "#".repeat(number))).unwrap();
        until("a data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
        took.push(daemon.event_times("resumed", number).await[number - 1].number("duration_ms"));
    }
    assert_eq!((lines("begun"), lines("issued")), (2, 1), "one hangs, no other is started");
    println!("a credential_process that hangs: resumed after {took:?} ms with the keys that are still valid");
    assert!(took[0] < 4800 && took[1] < 2500 && took[2] < 2500, "{took:?}");
    std::fs::remove_file(&hang).unwrap();
    until("it comes back", || (lines("issued") == 2).then_some(())).await;
    until("a data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
    daemon.event_times("resumed", 4).await;
    // Once more at most: the file had changed while it hung.
    until("all to have ended", || (lines("begun") == lines("issued")).then_some(())).await;
    assert!(lines("begun") <= 3);
    assert_eq!(lab.status().start.processed, 1);
    daemon.stop(&lab).await;
}

/// Somebody rotates the keys: the old ones are refused from now on. The next call has the new ones, and nobody notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_rotated_in_a_file_are_used_by_the_next_call() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let keys =
        |until: u64| format!("[ops]\naws_access_key_id = AKIDUNTIL{until}\naws_secret_access_key = secret\n");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (daemon, folder) = start(&lab, &keys(now + 4), "");
    daemon.event("ready").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    std::fs::write(folder.path().join("aws"), keys(now + 3600)).unwrap();
    lab.close_all(1000, "Bye");
    let resumed = daemon.event("resumed").await;
    println!("keys rotated in a file: resumed after {} ms, 1 try", resumed.number("duration_ms"));
    assert_eq!(resumed.number("attempts"), 1, "{}", resumed.text);
    assert_eq!(lab.status().expired_keys, 0);
    daemon.stop(&lab).await;
}

/// No role is attached yet: clients wait, and are served once there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_come_later_are_found() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (daemon, folder) = start(&lab, "", "");
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "access", "{}", failed.text);
    std::fs::write(folder.path().join("aws"), "[ops]\naws_access_key_id = A\naws_secret_access_key = s\n")
        .unwrap();
    daemon.event("ready").await;
    assert_eq!(lab.status().start.processed, 1);
    daemon.stop(&lab).await;
}

/// Lets the service close the data channel eight times in 32 s, and looks at each resume.
async fn resumes_on_and_on(lab: &Lab, daemon: &Daemon) {
    for number in 1..=8 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(lab.close_all(1000, "Bye"), 1, "{}", daemon.tail());
        let resumed = daemon.event_times("resumed", number).await;
        assert_eq!(resumed[number - 1].number("attempts"), 1, "{}", resumed[number - 1].text);
    }
    let status = lab.status();
    assert_eq!((status.start.processed, status.expired_keys), (1, 0));
    assert!(daemon.events("credentials_expiring").is_empty(), "they could always be renewed");
}

/// The instance's role is attached after the start, and its keys live 12 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_attached_to_the_instance_is_found_and_renewed() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let metadata = Metadata::start().await.unwrap();
    let (folder, address) = (folder(), own_address());
    let mut program = Command::new(PROGRAM);
    // Nothing but the metadata service has credentials.
    program.env_clear().env("HOME", folder.path()).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url());
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), KEYS);
    let daemon = Daemon::start_by_role(program, folder, address, &config);
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "access", "{}", failed.text);
    assert!(failed.field("reason").contains("attach a role to the instance"), "{}", failed.text);
    let status = daemon.status("without credentials", |_| true).await;
    assert_eq!(status["credentials"]["expiry"], "none", "{status:#}");
    metadata.attach_role(Duration::from_secs(12));
    let attached = Instant::now();
    daemon.event("ready").await;
    println!("a role was attached to the instance: up {:.1} s later", attached.elapsed().as_secs_f64());
    let status = daemon.status("with credentials", |_| true).await;
    assert_eq!(
        (&status["credentials"]["expiry"], &status["credentials"]["source"]),
        (&"at".into(), &"instance".into())
    );
    resumes_on_and_on(&lab, &daemon).await;
    println!("{} keys of the instance's role issued", metadata.issued());
    assert!((4..=12).contains(&metadata.issued()), "{}", metadata.issued());
    daemon.stop(&lab).await;
}

/// A role that is assumed with keys of a file; its own live 12 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_assumed_is_assumed_again_before_its_keys_expire() {
    let lab =
        Lab::start(Options { role_lives: Duration::from_secs(12), ..Options::default() }).await.unwrap();
    let (folder, address) = (folder(), own_address());
    let keys = "[ops]\naws_access_key_id = AKIDOPS\naws_secret_access_key = secret\n";
    std::fs::write(folder.path().join("aws"), keys).unwrap();
    let mut program = Command::new(PROGRAM);
    program
        .env_clear()
        .env("AWS_CONFIG_FILE", folder.path().join("none"))
        .env("AWS_SHARED_CREDENTIALS_FILE", folder.path().join("aws"))
        .env("AWS_ENDPOINT_URL_STS", lab.api_url());
    let role = "profile = \"ops\"\nrole_arn = \"arn:aws:iam::111122223333:role/tunnels\"\n";
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), &format!("{role}{KEYS}"));
    let daemon = Daemon::start_by(program, folder, address, &config);
    daemon.event("ready").await;
    let status = daemon.status("with credentials", |_| true).await;
    assert_eq!(
        (&status["credentials"]["expiry"], &status["credentials"]["source"]),
        (&"at".into(), &"role".into())
    );
    resumes_on_and_on(&lab, &daemon).await;
    println!("the role was assumed {}×", lab.status().roles_assumed);
    assert!((4..=8).contains(&lab.status().roles_assumed), "{}", lab.status().roles_assumed);
    daemon.stop(&lab).await;
}

/// The same keys again and again, which expire: said once, with what to do, before it is too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_credentials_expire_is_told_once_and_before() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let until = std::time::SystemTime::now() + Duration::from_secs(12);
    let expires = humantime::format_rfc3339_seconds(until).to_string();
    let temporary = |token: &str, expires: &str| {
        format!(
            "[ops]\naws_access_key_id = A\naws_secret_access_key = s\naws_session_token = {token}\n\
             x_security_token_expires = {expires}\n"
        )
    };
    let (daemon, folder) = start(&lab, &temporary("one", &expires), "");
    let told = daemon.event("credentials_expiring").await;
    assert_eq!((told.field("expires"), told.field("profile")), (&*expires, "ops"), "{}", told.text);
    assert_eq!(told.fields["level"], "ERROR");
    assert!(told.text.contains("put new ones into the profile"), "{}", told.text);
    assert!(told.at < until - Duration::from_secs(2), "told too late");
    std::fs::write(folder.path().join("aws"), temporary("two", "2100-01-01T00:00:00Z")).unwrap();
    until_renewed(&daemon).await;
    assert_eq!(daemon.events("credentials_expiring").len(), 1);
    daemon.stop(&lab).await;
}

async fn until_renewed(daemon: &Daemon) {
    until("renewed", || daemon.events("credentials_renewed").pop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_keys_without_an_expiry_are_told_of_once() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let keys = "[ops]\naws_access_key_id = A\naws_secret_access_key = s\naws_session_token = t\n";
    let (daemon, folder) = start(&lab, keys, "");
    daemon.event("ready").await;
    std::fs::write(folder.path().join("aws"), format!("{keys}# read again\n")).unwrap();
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    let log = daemon.stop(&lab).await;
    let told = log.iter().filter(|line| line.field("event") == "credentials_expiry_unknown").count();
    assert_eq!(told, 1);
}
