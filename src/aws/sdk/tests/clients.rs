//! Who is called: identities, certificates, profiles.

use super::*;
use crate::aws::api::Expires;

#[tokio::test]
async fn equal_identities_share_a_client() {
    let clients = Clients::new(Environment::default());
    let (one, same) = (clients.get(&identity()).await.unwrap(), clients.get(&identity()).await.unwrap());
    assert!(Arc::ptr_eq(&one, &same));
    let other = Identity { region: Some("us-west-2".to_owned()), ..identity() };
    let other = clients.get(&other).await.unwrap();
    assert!(!Arc::ptr_eq(&one, &other));
    assert_eq!((one.region(), other.region()), ("eu-west-1", "us-west-2"));
}

/// With its identity goes the client, and with that the task that renews its credentials and warns of them.
#[tokio::test]
async fn identities_that_no_tunnel_has_are_forgotten() {
    let clients = Clients::new(Environment::default());
    let other = Identity { region: Some("us-west-2".to_owned()), ..identity() };
    let (one, two) = (clients.get(&identity()).await.unwrap(), clients.get(&other).await.unwrap());
    clients.retain(&[&identity()]);
    assert!(Arc::ptr_eq(&one, &clients.get(&identity()).await.unwrap()));
    let forgotten = Arc::downgrade(&two);
    assert!(forgotten.upgrade().is_some(), "a session has it yet");
    drop(two);
    assert!(forgotten.upgrade().is_none());
}

#[tokio::test]
async fn a_bad_ca_file_is_read_again_at_the_next_call() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let identity = Identity { ca_file: Some(path.clone()), ..identity() };
    let clients = Clients::new(Environment::default());
    assert_eq!(clients.get(&identity).await.err().unwrap().class, Class::NeedsChange);
    let ca = rcgen::generate_simple_self_signed(vec!["ca.internal".to_owned()]).unwrap();
    std::fs::write(&path, ca.cert.pem()).unwrap();
    assert!(clients.get(&identity).await.is_ok());
}

#[tokio::test]
async fn a_missing_profile_is_named() {
    let identity = Identity { profile: Some("no-such-profile".to_owned()), ..identity() };
    let api = Clients::new(Environment::default()).get(&identity).await.unwrap();
    let failure = api.credentials().await.unwrap_err();
    assert_eq!(failure.class, Class::Access);
    assert!(failure.text.contains("look at profile `no-such-profile`"), "{failure}");
}

/// The environment belongs to the whole process, so the test runs itself in another one.
#[tokio::test]
async fn a_profile_goes_before_the_environment_and_is_read_anew() {
    const FOLDER: &str = "AUTOSSM_TEST_PROFILE_FOLDER";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return profile_and_environment(folder.as_ref()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let name = "aws::sdk::tests::clients::a_profile_goes_before_the_environment_and_is_read_anew";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FOLDER, folder.path())
        .env("AWS_CONFIG_FILE", folder.path().join("config"))
        .env("AWS_SHARED_CREDENTIALS_FILE", folder.path().join("credentials"))
        .env("AWS_ACCESS_KEY_ID", "ENVKEY")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_REGION")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn profile_and_environment(folder: &std::path::Path) {
    let write = |key: &str| {
        let text = format!("[ops]\naws_access_key_id = {key}\naws_secret_access_key = secret\n");
        std::fs::write(folder.join("credentials"), text).unwrap();
    };
    std::fs::write(folder.join("config"), "[profile ops]\nregion = ap-south-1\n").unwrap();
    write("FILE1");
    let service = Service::new(|_, _| (400, refuse("ExpiredTokenException", "expired"))).await;
    let ops = Identity {
        region: None,
        profile: Some("ops".to_owned()),
        endpoint_url: Some(service.url.clone()),
        ..identity()
    };
    let clients = Clients::new(Environment::default());
    let api = clients.get(&ops).await.unwrap();
    let key = async || api.credentials().await.unwrap().access_key_id().to_owned();
    assert_eq!(api.region(), "ap-south-1");
    assert_eq!(key().await, "FILE1");
    write("FILE2");
    assert_eq!(key().await, "FILE2", "rotated: the next call uses the new ones");
    // Temporary ones of a tool that notes their expiry beside them.
    let text = "[ops]\naws_access_key_id = FILE3\naws_secret_access_key = secret\naws_session_token = token\n\
                x_security_token_expires = 2100-01-01T12:00:00+02:00\n";
    std::fs::write(folder.join("credentials"), text).unwrap();
    assert_eq!(key().await, "FILE3");
    let held = api.held_credentials().unwrap();
    assert_eq!((&*held.access_key_id, held.source), ("FILE3", Some("profile")));
    let Expires::At(at) = held.expires else { panic!("{held:?}") };
    assert_eq!(humantime::format_rfc3339_seconds(at).to_string(), "2100-01-01T10:00:00Z");
    assert_eq!(api.terminate_session("s-1").await.unwrap_err().class, Class::Access);
    assert_eq!(service.requests(), 1, "there were no others to try");

    let api = clients.get(&identity()).await.unwrap();
    assert_eq!(api.held_credentials(), None, "nobody has asked for them yet");
    assert_eq!(api.credentials().await.unwrap().access_key_id(), "ENVKEY");
    let held = api.held_credentials().unwrap();
    assert_eq!((held.source, held.expires), (Some("environment"), Expires::Never));
}

#[tokio::test]
async fn no_region_says_what_to_set() {
    let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
    let source = Source::new(identity(), config.clone());
    let failure = Sdk::new(&config, None, source, Arc::default()).await.err().unwrap();
    assert_eq!(failure.class, Class::NeedsChange);
    assert!(failure.text.contains("set `region`"), "{failure}");
}

#[tokio::test]
async fn a_ca_file_is_trusted_beside_the_systems() {
    let session = |_: &str, _| (200, SESSION.to_owned());
    let mut service = Service::over_tls(session).await;
    service.api().start_session(&request()).await.unwrap();
    service.ca_file = None;
    let failure = service.api().start_session(&request()).await.unwrap_err();
    assert_eq!(failure.class, Class::Network);
    assert!(failure.text.contains("certificate"), "{failure}");
}
