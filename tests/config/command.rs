//! `autossm check`, as a command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{GOOD, root};

fn check(path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autossm"));
    command.env_remove("AUTOSSM_CONFIG").arg("check").arg("--config").arg(path).output().unwrap()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn check_lists_the_tunnels_of_a_good_file_in_columns() {
    let output = check(&root().join("config.example.toml"));
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    let listing = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines.len(), 3);
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    let expected = [
        "billing-db",
        "127.0.0.1:15432",
        "→",
        "mi-0123456789abcdef0",
        "→",
        "billing.internal:5432",
        "1",
        "session",
        "hold",
    ];
    assert_eq!(words, expected);
    let arrow = |line: &str| line.chars().position(|c| c == '→');
    assert!(arrow(lines[0]) == arrow(lines[1]) && arrow(lines[1]) == arrow(lines[2]), "{listing}");
    assert!(lines[2].ends_with("2 sessions  hold  disabled"), "{listing}");
}

/// Each alone is right, and together no call is ever made.
#[test]
fn check_refuses_an_address_beside_names_that_it_excludes() {
    let tunnel = |name: &str, port, keys: &str| {
        format!(
            "[[tunnel]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"i-0123456789abcdef0\"\n\
             remote_port = 5432\n{keys}\n"
        )
    };
    let given = "endpoint_url = \"https://vpce-1.ssm.us-west-2.vpce.amazonaws.com\"";
    let (folder, path) = file(&format!(
        "{}{}{}",
        tunnel("usual", 1, ""),
        tunnel("given", 2, given),
        tunnel("ops", 3, &format!("{given}\nprofile = \"ops\""))
    ));
    let aws = folder.path().join("aws");
    let profile = |text: &str| fs::write(&aws, text).unwrap();
    let checked = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autossm"));
        command.env_clear().env("AWS_CONFIG_FILE", &aws).envs(variables.iter().copied());
        let output = command.arg("check").arg("--config").arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said.replace(&format!("{}: ", path.display()), ""))
    };
    // Its credentials would have to be fetched: `check` makes no request.
    profile(
        "[profile ops]\nsso_session = here\nsso_account_id = 123456789012\nsso_role_name = ops\n\
         [sso-session here]\nsso_start_url = https://sso.invalid/start\nsso_region = us-west-2\n",
    );
    assert_eq!(checked(&[]), (Some(0), String::new()));
    assert_eq!(checked(&[("AWS_USE_FIPS_ENDPOINT", "false")]), (Some(0), String::new()));

    profile("[profile ops]\nuse_dualstack_endpoint = true\n");
    let (code, said) = checked(&[]);
    assert_eq!(code, Some(78), "{said}");
    assert_eq!(
        said,
        "tunnel `ops`: `endpoint_url` and dual-stack names (use_dualstack_endpoint in the profile) exclude each other: \
         AWS's SDKs refuse every call\n  help: leave out `endpoint_url` to call AWS's own name, or use_dualstack_endpoint \
         where the address is such a name itself\n"
    );

    profile("");
    let (code, said) = checked(&[("AWS_USE_FIPS_ENDPOINT", "true")]);
    assert_eq!(code, Some(78), "{said}");
    for tunnel in ["given", "ops"] {
        let words = format!(
            "tunnel `{tunnel}`: `endpoint_url` and FIPS names (AWS_USE_FIPS_ENDPOINT in the environment) exclude"
        );
        assert!(said.contains(&words), "{said}");
    }
    assert!(!said.contains("`usual`"), "{said}");

    let (code, said) =
        checked(&[("AWS_USE_FIPS_ENDPOINT", "true"), ("AWS_ENDPOINT_URL_SSM", "https://ssm.internal")]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("tunnel `usual`: an address of the API (AWS_ENDPOINT_URL_SSM, "), "{said}");
}

/// Somebody counts on it; and a default may be meant for the other tunnels.
#[test]
fn check_warns_of_a_keep_alive_that_cannot_be_sent() {
    for (defaults, keys, warned) in [
        ("", "gateway = \"observe\"\nkeepalive = \"30s\"", true),
        ("gateway = \"observe\"\nkeepalive = \"30s\"", "", true),
        ("gateway = \"observe\"", "keepalive = \"30s\"", true),
        ("keepalive = \"30s\"", "gateway = \"observe\"", false),
        ("", "gateway = \"observe\"\nkeepalive = \"off\"", false),
        ("", "gateway = \"observe\"", false),
        ("", "keepalive = \"30s\"", false),
    ] {
        let (_folder, path) = file(&format!(
            "[defaults]\n{defaults}\n[[tunnel]]\nname = \"db\"\nlisten = \"127.0.0.1:15432\"\n\
             target = \"i-0123456789abcdef0\"\nremote_port = 5432\n{keys}\n"
        ));
        let output = check(&path);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(
            said.starts_with("warning: tunnel `db`: `keepalive` has no effect"),
            warned,
            "{keys}: {said}"
        );
        assert_eq!(said.is_empty(), !warned, "{keys}: {said}");
    }
}

#[test]
fn check_prints_what_is_wrong_and_exits_with_78() {
    let (_folder, path) = file(&format!("{GOOD}hold = 30\nregoin = 1\n"));
    let output = check(&path);
    let place = path.display();
    let expected = format!(
        "{place}:6:8: hold: `30` has no unit\n  help: write \"30s\" for seconds, \"30m\" for minutes\n\
         {place}:7:1: unknown key `regoin` in [[tunnel]]\n  help: did you mean `region`? it takes a region's name\n"
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0));
    let output = check(&path.with_file_name("absent.toml"));
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("absent.toml: there is no such file\n  help: ")
    );
}

#[test]
fn the_environment_names_the_file_unless_the_command_line_does() {
    let (_folder, path) = file("x = 1\n");
    let example = root().join("config.example.toml");
    let status = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autossm"));
        command.env("AUTOSSM_CONFIG", &path).args(arguments).output().unwrap().status.code()
    };
    assert_eq!(status(&["check"]), Some(78));
    assert_eq!(status(&["check", "-c", example.to_str().unwrap()]), Some(0));
    assert_eq!(status(&["chek"]), Some(2));
}

#[test]
fn version_and_help_are_told() {
    let told = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_autossm")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(told(&["--version"]), concat!("autossm ", env!("CARGO_PKG_VERSION"), "\n"));
    for (arguments, words) in [
        (&["--help"][..], ["Exit status:", "autossm run billing-db"]),
        (&["run", "--help"], ["--log-format <FORMAT>", "kill -HUP"]),
        (&["check", "--help"], ["--config <FILE>", "status 78"]),
    ] {
        let help = told(arguments);
        assert!(words.iter().all(|word| help.contains(word)), "{help}");
    }
}
