//! What is said of a wrong file: where, in which words, and with what help.

use crate::{GOOD, parse, said};

/// One line after a good tunnel, the only problem that it makes, and words of the help.
#[test]
fn a_wrong_line_is_the_only_problem() {
    assert!(parse(GOOD).is_ok());
    let long_path = format!("listen = \"unix:/{}\"", "x".repeat(107));
    let cases = [
        ("hold = 30", "6:8: hold: `30` has no unit", "\"30s\" for seconds"),
        ("hold = 1.5", "6:8: hold: `1.5` has no unit", "\"1.5s\" for seconds"),
        ("hold = \"30\"", "6:8: hold: `30` has no unit", "\"30s\" for seconds"),
        ("hold = true", "6:8: hold: `true` is not a duration", "\"30s\""),
        ("hold = \"2h\"", "6:8: hold: `2h` is too long", "from \"0s\" to \"1h\""),
        ("stop_grace = \"11s\"", "6:14: stop_grace: `11s` is too long", "from \"0s\" to \"10s\""),
        (
            "half_close_timeout = \"1ms\"",
            "6:22: half_close_timeout: `1ms` is too short",
            "\"100ms\" to \"1h\"",
        ),
        (
            "client_buffer = 4096",
            "6:17: client_buffer: `4096` is not a string",
            "such as \"256KiB\" or \"4MiB\"",
        ),
        ("client_buffer = \"4MB\"", "6:17: client_buffer: `4MB` is not a size", "such as \"4MiB\""),
        ("stalled_client_timeout = \"2d\"", "6:26: stalled_client_timeout: `2d` is too long", "or \"off\""),
        ("drain = \"8d\"", "6:9: drain: `8d` is too long", "\"0s\" to \"7d\""),
        ("rotate = \"never\"", "6:10: rotate: `never` is not a duration", "or \"off\""),
        ("rotate = \"automatic\"", "6:10: rotate: `automatic` is not a duration", "or \"auto\""),
        ("rotate = false", "6:10: rotate: `false` is not a duration", "write \"off\""),
        ("keepalive = \"500ms\"", "6:13: keepalive: `500ms` is too short", "or \"off\""),
        ("rotate = 12", "6:10: rotate: `12` has no unit", "\"12m\" for minutes"),
        ("probe = 3", "6:9: probe: `3` is not a table", "`[tunnel.probe]`"),
        ("probe = \"tcp\"", "6:9: probe: `tcp` is not a table", "`kind = \"tcp\"`"),
        ("[tunnel.probe]", "6:1: the probe has no `kind`", "add `kind = …`"),
        ("probe.kind = \"mysql\"", "6:14: probe.kind: `mysql` is no kind of probe", "lock the host out"),
        ("probe.kind = \"htpp\"", "6:14: probe.kind: `htpp` is no kind of probe", "did you mean \"http\"?"),
        ("probe.kind = 3", "6:14: probe.kind: `3` is not a string", "write one of \"tcp\""),
        (
            "[tunnel.probe]\nkind = \"tcp\"\ninterval = 30",
            "8:12: probe.interval: `30` has no unit",
            "\"30s\" for seconds",
        ),
        (
            "[tunnel.probe]\nkind = \"tcp\"\n  timout = \"1s\"",
            "8:3: unknown key `timout` in a probe",
            "did you mean `timeout`?",
        ),
        ("probe = { kind = \"tcp\", fall = \"3\" }", "6:32: probe.fall: `3` is a string", "write `fall = 3`"),
        (
            "probe = { kind = \"tcp\", path = \"/\" }",
            "6:25: probe.path: a probe of the kind `tcp` has none",
            "it is for `http` and `https`",
        ),
        (
            "probe = { kind = \"http\", path = \"health\" }",
            "6:33: probe.path: `health` is not a path",
            "begins with /",
        ),
        ("probe.kind = \"custom\"", "6:1: the probe has no `expect`", "add `expect = …`"),
        (
            "probe = { kind = \"custom\", expect = [256] }",
            "6:37: probe.expect: a list is no string and no list of bytes",
            "from 0 to 255",
        ),
        (
            "probe = { kind = \"redis\", password = \"x\" }",
            "6:27: `password`: secrets do not belong in this file",
            "the host's role",
        ),
        ("[defaults.probe]\nkind = 1", "7:8: probe.kind: `1` is not a string", "write one of"),
        ("sessions = 0", "6:12: sessions: 0 is too small", "from 1 to 16"),
        ("sessions = 17", "6:12: sessions: 17 is too large", "from 1 to 16"),
        ("sessions = \"2\"", "6:12: sessions: `2` is a string", "write `sessions = 2`"),
        (
            "sessions = 99999999999999999999999",
            "6:12: sessions: 99999999999999999999999 is too large",
            "1 to 16",
        ),
        ("max_held = 1.5", "6:12: max_held: `1.5` is not a whole number", "from 0 to 65535"),
        ("max_connections = -1", "6:19: max_connections: -1 is too small", "from 1 to 65535"),
        ("enabled = \"yes\"", "6:11: enabled: `yes` is neither true nor false", "true or false"),
        (
            "gateway = \"observed\"",
            "6:11: gateway: `observed` is not a gateway mode",
            "did you mean \"observe\"?",
        ),
        ("region = \"us-west2\"", "6:10: region: `us-west2` is not a region", "did you mean \"us-west-2\"?"),
        ("region = 7", "6:10: region: `7` is not a string", "such as \"us-west-2\""),
        ("profile = 7", "6:11: profile: `7` is not a string", "in quotes: \"7\""),
        ("profile = \"\"", "6:11: profile: `` is not a profile name", "~/.aws/config"),
        (
            "role_arn = \"tunnels\"",
            "6:12: role_arn: `tunnels` is not a role ARN",
            "arn:aws:iam::123456789012:role/",
        ),
        ("external_id = \"ops\"", "6:15: external_id: no role is assumed here", "add `role_arn`"),
        ("endpoint_url = \"example.com\"", "6:16: endpoint_url: `example.com` is not a URL", "\"https://"),
        (
            "endpoint_url = \"http://example.com\"",
            "6:16: endpoint_url: `http://example.com` is without TLS and not on this host",
            "https://",
        ),
        (
            "endpoint_url = \"https://me:hunter2@example.com\"",
            "6:16: endpoint_url: the URL has a user or a password before its host",
            "leave out",
        ),
        (
            "stream_endpoint = \"https://x\"",
            "6:19: stream_endpoint: `https://x` is not a wss address",
            "\"wss://HOST\"",
        ),
        (
            "stream_endpoint = \"ws://127.0.0.1\"",
            "6:19: stream_endpoint: `ws://127.0.0.1` has no port",
            "needs a port",
        ),
        ("ca_file = \"ca.pem\"", "6:11: ca_file: `ca.pem` is not an absolute path", "begins with /"),
        ("plugin = \"bin/smp\"", "6:10: plugin: `bin/smp` is a relative path", "begins with /"),
        ("document = \"a b\"", "6:12: document: `a b` is not a session document name", "3 to 128"),
        (
            "parameters = { a = \"b\" }",
            "6:14: parameters: only a document of your own takes parameters",
            "`document`",
        ),
        ("document = \"Own\"\nparameters = 3", "7:14: parameters: `3` is not a table", "{ host = "),
        (
            "document = \"Own\"\nparameters.a = [\"b\", 3]",
            "7:22: parameters: `3` is not a string",
            "in quotes: \"3\"",
        ),
        ("reason = \"a\\nb\"", "6:10: reason: `a\\nb` cannot be a session's reason", "one line"),
        ("remote_host = \"db:5432\"", "6:15: remote_host: `db:5432` is not a host", "remote_port = 5432"),
        ("regoin = \"us-west-2\"", "6:1: unknown key `regoin` in [[tunnel]]", "did you mean `region`?"),
        ("  colour = 1", "6:3: unknown key `colour` in [[tunnel]]", "config.example.toml"),
        ("[tunnel.options]\na = 1", "6:9: unknown key `options` in [[tunnel]]", "config.example.toml"),
        (
            "token = \"hunter2\"",
            "6:1: `token`: secrets do not belong in this file",
            "`profile` of ~/.aws/config",
        ),
        ("password = \"hunter2\"", "6:1: `password`: secrets do not belong in this file", "the host's role"),
        (
            "aws_access_key_id = \"x\"",
            "6:1: `aws_access_key_id`: secrets do not belong in this file",
            "the host's role",
        ),
        (
            "[credentials]\nsecret = 1",
            "6:2: `credentials`: secrets do not belong in this file",
            "the host's role",
        ),
        ("[default]", "6:2: unknown table `default`", "did you mean `[defaults]`?"),
        ("[settings]", "6:2: unknown table `settings`", "`[defaults]`, a `[[tunnel]]`"),
        ("[parameters]\na = \"b\"", "6:2: `parameters` is outside of any tunnel", "`[tunnel.parameters]`"),
        ("[defaults]\nregoin = 1", "7:1: unknown key `regoin` in [defaults]", "did you mean `region`?"),
        ("[defaults]\nname = \"x\"", "7:1: `name` is not allowed in [defaults]", "its own `name`"),
        ("[defaults]\nlisten = \"x\"", "7:1: `listen` is not allowed in [defaults]", "its own `listen`"),
        ("[defaults]\ntarget = \"x\"", "7:1: `target` is not allowed in [defaults]", "its own `target`"),
        ("[defaults]\nhold = 30", "7:8: hold: `30` has no unit", "\"30s\""),
        ("[defaults]\nexternal_id = \"ops\"", "7:15: external_id: no role is assumed here", "add `role_arn`"),
        ("[[defaults]]", "6:1: `defaults` is one table, not a list or a value", "`[defaults]`"),
        ("listen = 3", "6:1: the key `listen` is given twice", "`[[tunnel]]`"),
        ("hold = 30s", "6:8: syntax error: a string must be in quotes", "write \"…\" around it"),
        ("hold = \"30s", "6:12: syntax error: the closing quote is missing", "\"…\""),
        ("hold =", "6:7: syntax error: a string must be in quotes", "write a value after the `=`"),
        ("hold", "6:5: syntax error: a key without a value", "`KEY = VALUE`"),
        ("target2 = [\"a\"", "6:15: syntax error: the list is not closed", "`]`"),
        ("[tunnel]", "6:2: the table `tunnel` is begun twice", "double brackets"),
        ("[defaults", "6:10: syntax error: unclosed table", "`[[tunnel]]`"),
        ("reason = \"C:\\q\"", "6:14: syntax error: a backslash begins an escape", "\\\\ for a backslash"),
    ];
    for (line, what, help) in cases {
        let found = said(&format!("{GOOD}{line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:#?}");
        assert!(found[0].0.starts_with(what), "{line}\n  said: {}\n  want: {what}", found[0].0);
        assert!(found[0].1.contains(help), "{line}\n  said: {}\n  want: {help}", found[0].1);
        assert!(!format!("{found:?}").contains("hunter2"), "{line}");
    }
    // Listen addresses, names and targets are given already: in place of theirs.
    let cases = [
        (2, "name = \"Billing\"", "2:8: name: `Billing` contains `B`", "a-z, 0-9 and -: \"billing\""),
        (2, "name = \"\"", "2:8: name: the name is empty", "1 to 48 characters"),
        (2, &format!("name = \"{}\"", "x".repeat(49)), "2:8: name: the name has 49 characters", "at most 48"),
        (2, "", "1:1: this tunnel has no `name`", "add `name = …`"),
        (3, "", "1:1: tunnel `a` has no `listen`", "add `listen = …`"),
        (3, "listen = \"127.0.0.1:0\"", "3:10: listen: there is no port 0 to listen on", "from 1 to 65535"),
        (
            3,
            "listen = \"127.0.0.1:70000\"",
            "3:10: listen: there is no port 70000 to listen on",
            "from 1 to 65535",
        ),
        (3, "listen = 15432", "3:10: listen: `15432` is not a string", "\"127.0.0.1:15432\""),
        (3, "listen = []", "3:10: listen: the list is empty", "at least one"),
        (3, "listen = \"localhost:1\"", "3:10: listen: `localhost` is a name", "\"127.0.0.1:1\""),
        (
            3,
            "listen = \"unix:a.sock\"",
            "3:10: listen: the socket's path `a.sock` is relative",
            "begins with /",
        ),
        (3, &long_path, "3:10: listen: the socket's path is 108 bytes long", "allows 107 bytes"),
        (
            3,
            "listen = [\"127.0.0.1:1\", \"0.0.0.0:1\"]",
            "3:26: listen: `0.0.0.0:1` overlaps `127.0.0.1:1` of this tunnel, at line 3",
            "another port",
        ),
        (4, "target = \"bastion\"", "4:10: target: `bastion` is not a target id", "{ tag = \"Key=Value\" }"),
        (4, "target = [\"i-12345678\", \"mi-1\"]", "4:25: target: `mi-1` is not a target id", "17 digits"),
        (4, "target = { tag = \"Role\" }", "4:18: target: the tag `Role` is not of the form", "Role=bastion"),
        (4, "target = { name = \"Role\" }", "4:10: target: a table without `tag`", "{ tag = \"Key=Value\" }"),
        (5, "", "1:1: tunnel `a` has no `remote_port`", "a number, 1 to 65535"),
        (5, "remote_port = 0", "5:15: remote_port: 0 is too small", "from 1 to 65535"),
        (5, "remote_port = 70000", "5:15: remote_port: 70000 is too large", "from 1 to 65535"),
        (5, "remote_port = \"5432\"", "5:15: remote_port: `5432` is a string", "`remote_port = 5432`"),
        (
            5,
            "remotePort = 5432",
            "5:1: unknown key `remotePort` in [[tunnel]]",
            "did you mean `remote_port`?",
        ),
    ];
    for (number, line, what, help) in cases {
        let lines: Vec<&str> =
            GOOD.lines().enumerate().map(|(i, good)| if i + 1 == number { line } else { good }).collect();
        let found = said(&lines.join("\n"));
        assert!(found[0].0.starts_with(what), "{line}\n  said: {}\n  want: {what}", found[0].0);
        let found = found.last().unwrap();
        assert!(found.1.contains(help), "{line}\n  said: {}\n  want: {help}", found.1);
    }
}

#[test]
fn tunnels_are_compared_with_one_another() {
    let second = |name: &str, listen: &str| {
        format!(
            "{GOOD}[[tunnel]]\nname = \"{name}\"\nlisten = {listen}\ntarget = \"i-12345678\"\nremote_port = 1\n"
        )
    };
    for (name, listen, what) in [
        ("a", "\"127.0.0.1:2\"", "7:8: name: `a` is already the name of the tunnel at line 2"),
        ("b", "\"127.0.0.1:1\"", "8:10: listen: `127.0.0.1:1` is taken by tunnel `a`, at line 3"),
        ("b", "\"0.0.0.0:1\"", "8:10: listen: `0.0.0.0:1` overlaps `127.0.0.1:1` of tunnel `a`, at line 3"),
        (
            "b",
            "[\"[::1]:1\", \"[::]:1\"]",
            "8:22: listen: `[::]:1` overlaps `127.0.0.1:1` of tunnel `a`, at line 3",
        ),
        ("b", "[\"unix:/run/a\", \"unix:/run/a\"]", "8:26: listen: `unix:/run/a` is in the list twice"),
    ] {
        let found = said(&second(name, listen));
        assert_eq!((found.len(), found[0].0.as_str()), (1, what), "{found:#?}");
    }
    // A disabled tunnel can be run by its name, beside the others.
    let found = said(&(second("b", "\"127.0.0.1:1\"") + "enabled = false\n"));
    assert_eq!(found[0].0, "8:10: listen: `127.0.0.1:1` is taken by tunnel `a`, at line 3");
    assert!(parse(&second("b", "[\"127.0.0.1:2\", \"[::1]:1\", \"unix:/run/a\"]")).is_ok());
}

#[test]
fn a_file_without_tunnels_says_so() {
    for text in ["", "\n\n", "# nothing\n", "[defaults]\nregion = \"us-west-2\"\n", "tunnel = []\n"] {
        let found = said(text);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].0, "1:1: there is no tunnel in this file");
        assert!(found[0].1.contains("`[[tunnel]]`"));
    }
}

/// Single brackets and a plural are the usual mistakes; what stands beneath is checked all the same.
#[test]
fn a_tunnel_in_the_wrong_brackets_is_still_read() {
    let found = said(&GOOD.replace("[[tunnel]]", "[tunnel]").replace("5432", "0"));
    assert_eq!(found[0].0, "1:1: `tunnel` is a list of tables, one for each tunnel");
    assert_eq!(found[1].0, "5:15: remote_port: 0 is too small");
    for (text, what) in [
        ("tunnel = 3\n", "1:10: `tunnel` is a list of tables, one for each tunnel"),
        ("tunnel = [3]\n", "1:11: a tunnel is a table"),
    ] {
        let found = said(text);
        assert_eq!((found.len(), found[0].0.as_str()), (1, what), "{found:#?}");
    }
    let found = said(&GOOD.replace("[[tunnel]]", "[[tunnels]]").replace("5432", "0"));
    assert_eq!(
        (found[0].0.as_str(), found[0].1.as_str()),
        ("1:3: unknown table `tunnels`", "did you mean `[[tunnel]]`?")
    );
    assert_eq!(found[1].0, "5:15: remote_port: 0 is too small");
}

/// Each line has its own error, and not one hides another.
#[test]
fn everything_is_said_at_once_and_in_order() {
    let text = "\
region = \"us-west-2\"
[defaults]
hold = 30
listen = \"127.0.0.1:9\"
[[tunnel]]
name = \"A\"
listen = [\"127.0.0.1:0\", \"127.0.0.1:70000\", 5]
target = \"bastion\"
sessions = \"many\"
enabled = 1
regoin = 1
secret_key = \"hunter2\"
[[tunnel]]
name = \"b\"
";
    let found = said(text);
    let places: Vec<&str> = found.iter().map(|(what, _)| &what[..what.find(": ").unwrap()]).collect();
    let expected = [
        "1:1", "3:8", "4:1", "5:1", "6:8", "7:11", "7:26", "7:45", "8:10", "9:12", "10:11", "11:1", "12:1",
        "13:1", "13:1", "13:1",
    ];
    assert_eq!(places, expected, "{found:#?}");
    assert!(!format!("{found:?}").contains("hunter2"));
}

/// All syntax errors up to the one after which nothing can be believed, and what is wrong before it.
#[test]
fn syntax_errors_do_not_hide_what_is_before_them() {
    let found =
        said("[defaults]\nregion = us-west-2\nhold = 30\nreason = \"x\n[[tunnel]]\nname \"a\"\nhold = 30\n");
    let what: Vec<&str> = found.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(
        what,
        [
            "2:10: syntax error: a string must be in quotes",
            "3:8: hold: `30` has no unit",
            "4:12: syntax error: the closing quote is missing",
            "6:6: syntax error: a key without a value",
        ]
    );
}

#[test]
fn a_tunnel_goes_before_the_defaults_and_they_before_what_is_built_in() {
    let text = format!("[defaults]\nhold = \"1s\"\ndrain = \"2s\"\nremote_port = 9\n{GOOD}drain = \"3s\"\n");
    let tunnel = parse(&text).unwrap().tunnels.remove(0);
    assert_eq!((tunnel.hold.as_secs(), tunnel.drain.as_secs(), tunnel.resume_for.as_secs()), (1, 3, 600));
    assert_eq!(tunnel.remote_port, 5432);
    let without = text.replace("remote_port = 5432\n", "");
    assert_eq!(parse(&without).unwrap().tunnels[0].remote_port, 9);
}

/// A wrong default is said once, however many tunnels use it, and even if none does.
#[test]
fn a_wrong_default_is_said_once() {
    let second = GOOD.replace("\"a\"", "\"b\"").replace(":1\"", ":2\"");
    let found = said(&format!("[defaults]\nexternal_id = \"ops\"\n{GOOD}{second}"));
    assert_eq!(found.len(), 1, "{found:#?}");
    let found = said(&format!("[defaults]\nhold = 30\n{GOOD}hold = \"1s\"\n"));
    assert_eq!(found[0].0, "2:8: hold: `30` has no unit");
}

#[test]
fn a_wrong_hook_is_the_only_problem() {
    let hook = "[[hook]]\nname = \"chat\"\nevents = \"lost\"\ncommand = \"/bin/chat\"\n";
    assert_eq!(parse(&format!("{GOOD}{hook}")).unwrap().hooks.len(), 1);
    for (line, what, help) in [
        ("timeout = 10", "10:11: hook.timeout: `10` has no unit", "\"10s\" for seconds"),
        ("burst = 0", "10:9: hook.burst: 0 is too small", "from 1 to 100"),
        ("timout = \"1s\"", "10:1: unknown key `timout` in a hook", "did you mean `timeout`?"),
        ("url = \"x\"", "10:1: unknown key `url` in a hook", "a hook has `name`, `events`"),
        ("webhook_token = \"x\"", "10:1: `webhook_token`: secrets do not belong in this file", "take it out"),
        ("tunnels = \"b\"", "10:11: hook.tunnels: there is no tunnel `b`", "did you mean \"a\"?"),
        ("tunnels = [\"other\"]", "10:12: hook.tunnels: there is no tunnel `other`", "leave `tunnels` out"),
        (
            "environment = \"A=1\"",
            "10:15: hook.environment: `A=1` is not a variable's name",
            "the name alone",
        ),
    ] {
        let said = said(&format!("{GOOD}{hook}{line}\n"));
        assert!(said.len() == 1 && said[0].0 == what && said[0].1.contains(help), "{line}: {said:?}");
    }
    for (right, wrong, what, help) in [
        ("\"lost\"", "\"losst\"", "8:10: hook.events: `losst` is no event", "did you mean \"lost\"?"),
        ("\"lost\"", "[\"lost\", \"*\"]", "8:19: hook.events: `*` is no event", "such as \"lost\""),
        ("\"lost\"", "[\"lost\", \"lost\"]", "8:19: hook.events: `lost` is in the list twice", "keep one"),
        (
            "\"lost\"",
            "\"hook_failed\"",
            "8:10: hook.events: no hook is run for the event `hook_failed`",
            "others",
        ),
        ("\"/bin/chat\"", "\"chat\"", "9:11: hook.command: `chat` is not an absolute path", "begins with /"),
        (
            "\"/bin/chat\"",
            "\"/bin/chat -x\"",
            "9:11: hook.command: `/bin/chat -x` is a program with arguments in one string",
            "[\"/bin/chat\", \"-x\"]",
        ),
        ("\"/bin/chat\"", "[]", "9:11: hook.command: the list is empty", "its path"),
        ("\"chat\"", "\"Chat\"", "7:8: hook.name: `Chat` contains `C`", "\"chat\""),
        ("command = \"/bin/chat\"", "", "6:1: hook `chat` has no `command`", "add `command = …`"),
        ("[[hook]]", "[hook]", "6:1: `hook` is a list of tables, one for each hook", "`[[hook]]`"),
        ("[[hook]]", "[[hooks]]", "6:3: unknown table `hooks`", "did you mean `[[hook]]`?"),
    ] {
        let said = said(&format!("{GOOD}{}", hook.replacen(right, wrong, 1)));
        assert!(said.len() == 1 && said[0].0 == what && said[0].1.contains(help), "{wrong}: {said:?}");
    }
    let twice = said(&format!("{GOOD}{hook}{hook}"));
    assert_eq!(twice[0].0, "11:8: name: `chat` is already the name of the hook at line 7");
}
