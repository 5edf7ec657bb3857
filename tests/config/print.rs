//! `autossm import` and `autossm policy`, as commands: what goes where, and how they end.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use autossm::config;

use crate::{GOOD, root};

const CALL: &str = "aws ssm start-session --target i-0123456789abcdef0 --region us-east-1 \
                    --document-name AWS-StartPortForwardingSessionToRemoteHost \
                    --parameters host=billing.internal,portNumber=5432,localPortNumber=15432";

fn autossm(config: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autossm"));
    command.args(arguments).env_clear().env("AUTOSSM_CONFIG", config);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn texts(output: Output) -> (Option<i32>, String, String) {
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), out, err)
}

#[test]
fn a_command_is_imported_however_it_is_given() {
    let nowhere = Path::new("/nonexistent/config.toml");
    let words: Vec<&str> = ["import", "--"].into_iter().chain(CALL.split_whitespace()).collect();
    let script = format!("#!/bin/sh\n# the tunnels\n{}\n", CALL.replace(" --", " \\\n  --"));
    let mut printed = Vec::new();
    for (arguments, input) in [(&words[..], ""), (&["import", CALL], ""), (&["import"], script.as_str())] {
        let (status, out, err) = texts(autossm(nowhere, arguments, input));
        assert_eq!((status, err.as_str()), (Some(0), ""), "{arguments:?}");
        printed.push(out);
    }
    assert!(printed.iter().all(|out| *out == printed[0]), "{printed:?}");
    let config = config::parse("printed", &printed[0]).unwrap();
    let tunnel = &config.tunnels[0];
    assert_eq!(
        (tunnel.name.as_str(), tunnel.remote_host.as_deref()),
        ("billing-5432", Some("billing.internal"))
    );
    assert_eq!((tunnel.remote_port, tunnel.listen[0].to_string().as_str()), (5432, "127.0.0.1:15432"));
}

/// What is appended to the configuration is still one.
#[test]
fn names_and_addresses_of_the_configuration_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(
        &path,
        format!("{}{GOOD}", GOOD.replace("\"a\"", "\"billing-5432\"").replace(":1\"", ":15432\"")),
    )
    .unwrap();
    let (status, out, _) = texts(autossm(&path, &["import", &format!("{CALL}; {CALL}")], ""));
    assert_eq!(status, Some(0));
    assert!(out.contains("name = \"billing-5432-2\"") && out.contains("name = \"billing-5432-3\""), "{out}");
    assert_eq!(out.matches("# listen: 127.0.0.1:15432 is taken by another tunnel\n").count(), 2, "{out}");
    let given = texts(autossm(&path, &["import", "--name", "db", "--listen", "127.0.0.1:7", CALL], "")).1;
    let whole = std::fs::read_to_string(&path).unwrap() + &given;
    assert_eq!(config::parse("whole", &whole).unwrap().tunnels.len(), 3);
}

#[test]
fn what_is_no_tunnel_prints_nothing_and_exits_with_2() {
    let nowhere = Path::new("/nonexistent/config.toml");
    for (arguments, input, words) in [
        (
            &["import", "--", "aws", "ssm", "start-session", "--target", "i-12345678"][..],
            "",
            "error: this is not port forwarding: ",
        ),
        (&["import"], "echo hello\n", "error: there is no `aws ssm start-session` in this\n"),
        (&["import"], "aws ssm start-session --target $T\n", "error: line 1: `$T` is filled in by the shell"),
        (&["import"], "", "error: there is no `aws ssm start-session` in this\n"),
        (&["policy", "--account", "12"], "", "error: invalid value '12'"),
    ] {
        let (status, out, err) = texts(autossm(nowhere, arguments, input));
        assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.starts_with(words), "{err}");
    }
    let both = format!("{CALL}\naws ssm start-session --target i-12345678\n");
    let (status, out, err) = texts(autossm(nowhere, &["import"], &both));
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("error: command 2: this is not port forwarding: "), "{err}");
}

#[test]
fn policies_go_to_standard_output_and_all_else_does_not() {
    let example = root().join("config.example.toml");
    let (status, out, err) = texts(autossm(&example, &["policy", "--account", "123456789012"], ""));
    assert_eq!(status, Some(0), "{err}");
    let policy: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(policy["Statement"].as_array().is_some_and(|statements| statements.len() >= 4), "{out}");
    assert!(!out.contains(":*:") && err.starts_with("policy for the host's own role or user"), "{out}{err}");

    let (status, out, err) = texts(autossm(&example, &["policy", "billing"], ""));
    assert_eq!((status, out.as_str()), (Some(78), ""));
    assert!(err.starts_with("error: there is no tunnel `billing`; did you mean `billing-db`?"), "{err}");
    let (status, out, _) = texts(autossm(Path::new("/nonexistent/x"), &["policy"], ""));
    assert_eq!((status, out.as_str()), (Some(78), ""));
}

/// What goes into a file is one document, or nothing.
#[test]
fn of_several_principals_one_has_to_be_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let tunnel = |name: &str, port: u16, keys: &str| {
        format!(
            "[[tunnel]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"i-12345678\"\nremote_port = 1\n\
             region = \"eu-west-1\"\n{keys}\n"
        )
    };
    let text = tunnel("a", 1, "")
        + &tunnel("b", 2, "profile = \"ops\"")
        + &tunnel("c", 3, "role_arn = \"arn:aws:iam::123456789012:role/path/tunnels\"");
    std::fs::write(&path, text).unwrap();
    let (status, out, err) = texts(autossm(&path, &["policy"], ""));
    assert_eq!((status, out.as_str()), (Some(2), ""), "{err}");
    for choice in ["host", "ops", "arn:aws:iam::123456789012:role/path/tunnels"] {
        assert!(err.contains(&format!("\n  --for {choice}\n")), "{err}");
        let (status, out, err) = texts(autossm(&path, &["policy", "--for", choice], ""));
        assert_eq!(status, Some(0), "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap();
        assert_eq!(err.matches("policy for ").count(), 1, "{err}");
    }
    let (status, out, err) = texts(autossm(&path, &["policy", "--for", "tunnels"], ""));
    assert!(status == Some(0) && err.starts_with("policy for the role arn:aws:iam::"), "{err}");
    assert!(out.contains("ssm:StartSession"), "{out}");
    let (status, _, err) = texts(autossm(&path, &["policy", "--for", "nobody"], ""));
    assert_eq!(status, Some(2));
    assert!(err.starts_with("error: no tunnel is run by nobody; there are: --for host, "), "{err}");
    assert_eq!(texts(autossm(&path, &["policy", "b"], "")).0, Some(0), "there is only one");
}
