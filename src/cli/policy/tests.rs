use serde_json::Value;

use super::*;
use proptest::prelude::*;

/// What autossm can ever need.
const ACTIONS: [&str; 7] = [
    "ssm:StartSession",
    "ssm:ResumeSession",
    "ssm:TerminateSession",
    "ssm:DescribeInstanceInformation",
    "ssm:GetDocument",
    "ssmmessages:OpenDataChannel",
    "sts:AssumeRole",
];

const CONTAINER: &str =
    "ecs:my_own_cluster_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-1234567890";

fn parsed(text: &str) -> config::Config {
    config::parse("config.toml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn tunnel(name: &str, port: u16, keys: &str) -> String {
    format!("[[tunnel]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\nremote_port = 5432\n{keys}\n")
}

/// The policies, each checked for being one: IAM's grammar as far as it is used here, no unknown action, no resource that is
/// wider than it must be.
fn printed(text: &str, account: Option<&str>) -> Vec<(String, Value)> {
    let config = parsed(text);
    let tunnels = config.select(&[]).unwrap();
    let policies = policies(&tunnels, account).into_iter();
    policies
        .map(|(principal, policy)| {
            let json: Value = serde_json::from_str(&policy.json()).unwrap();
            check(&json);
            (title(principal), json)
        })
        .collect()
}

fn check(policy: &Value) {
    assert_eq!(policy.as_object().unwrap().keys().collect::<Vec<_>>(), ["Statement", "Version"]);
    assert_eq!(policy["Version"], "2012-10-17");
    let statements = policy["Statement"].as_array().unwrap();
    assert!(!statements.is_empty());
    let mut sids = BTreeSet::new();
    for statement in statements {
        let allowed = ["Sid", "Effect", "Action", "Resource", "Condition"];
        assert!(statement.as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str())));
        let sid = statement["Sid"].as_str().unwrap();
        assert!(sids.insert(sid.to_owned()) && sid.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{sid}");
        assert_eq!(statement["Effect"], "Allow");
        let actions: Vec<_> =
            statement["Action"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert!(!actions.is_empty() && actions.iter().all(|action| ACTIONS.contains(action)), "{actions:?}");
        for resource in statement["Resource"].as_array().unwrap() {
            let resource = resource.as_str().unwrap();
            if resource == "*" {
                assert_eq!(actions, ["ssm:DescribeInstanceInformation"], "which takes no narrower one");
                continue;
            }
            let parts: Vec<_> = resource.splitn(6, ':').collect();
            assert!(parts.len() == 6 && parts[0] == "arn" && parts[1].starts_with("aws"), "{resource}");
            assert!(["ec2", "ssm", "ecs", "iam"].contains(&parts[2]), "{resource}");
            let everything = parts[5].ends_with("/*") && !parts[5].starts_with("session/");
            assert!(!everything || sid.starts_with("TargetsByTag"), "{resource}");
            if parts[5] == "session/*" {
                assert_eq!(sid, "OwnSessionsByTag");
            }
        }
        if actions.contains(&"ssm:StartSession") {
            assert_eq!(statement["Condition"]["BoolIfExists"]["ssm:SessionDocumentAccessCheck"], "true");
        }
        if sid.contains("ByTag") {
            assert_eq!(
                statement["Condition"].as_object().unwrap().len(),
                if sid.starts_with("Own") { 1 } else { 2 }
            );
        }
    }
}

fn statement<'a>(policy: &'a Value, sid: &str) -> &'a Value {
    let statements = policy["Statement"].as_array().unwrap();
    statements
        .iter()
        .find(|statement| statement["Sid"] == sid)
        .unwrap_or_else(|| panic!("no {sid}: {policy:#}"))
}

#[test]
fn targets_documents_and_sessions_of_one_principal() {
    let text =
        tunnel(
            "a",
            1,
            "region = \"us-west-2\"\ntarget = [\"i-0123456789abcdef0\", \"mi-0123456789abcdef0\"]",
        ) + &tunnel(
            "b",
            2,
            &format!("region = \"us-east-1\"\nremote_host = \"db\"\ntarget = \"{CONTAINER}\""),
        ) + &tunnel("c", 3, "region = \"us-east-1\"\ndocument = \"Ops-Forward\"\ntarget = \"i-12345678\"")
            + &tunnel("off", 4, "enabled = false\ntarget = \"i-87654321\"");
    let printed = printed(&text, Some("123456789012"));
    let [(title, policy)] = &printed[..] else { panic!("{printed:?}") };
    assert_eq!(title, "the host's own role or user, which autossm runs with");
    assert_eq!(
        statement(policy, "Targets")["Resource"],
        serde_json::json!([
            "arn:aws:ec2:us-east-1:123456789012:instance/i-12345678",
            "arn:aws:ec2:us-west-2:123456789012:instance/i-0123456789abcdef0",
            "arn:aws:ecs:us-east-1:123456789012:task/my_own_cluster/0123456789abcdef0123456789abcdef",
            "arn:aws:ssm:us-west-2:123456789012:managed-instance/mi-0123456789abcdef0",
        ])
    );
    assert_eq!(
        statement(policy, "Documents")["Resource"],
        serde_json::json!([
            "arn:aws:ssm:us-east-1:123456789012:document/Ops-Forward",
            "arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost",
            "arn:aws:ssm:us-west-2::document/AWS-StartPortForwardingSession",
        ])
    );
    let own = statement(policy, "OwnSessions")["Resource"].to_string();
    assert!(own.contains("arn:aws:ssm:us-west-2:123456789012:session/${aws:userid}-*"), "{own}");
    assert!(own.contains("arn:aws:ssm:us-east-1:123456789012:session/${aws:username}-*"), "{own}");
    assert!(
        !policy.to_string().contains("DescribeInstanceInformation")
            && !policy.to_string().contains("i-87654321")
    );
}

#[test]
fn tags_become_conditions_and_need_the_list_of_nodes() {
    let text = tunnel("a", 1, "region = \"us-west-2\"\ntarget = { tag = \"Role=bas${x}*\" }")
        + &tunnel("b", 2, "region = \"us-east-1\"\ntarget = { tag = \"Role=bas${x}*\" }");
    let printed = printed(&text, None);
    let tagged = statement(&printed[0].1, "TargetsByTag1");
    assert_eq!(tagged["Condition"]["StringEquals"]["ssm:resourceTag/Role"], "bas${$}{x}*");
    let nodes = tagged["Resource"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    assert_eq!(nodes[0], "arn:aws:ec2:us-east-1:*:instance/*");
    assert_eq!(statement(&printed[0].1, "FindTargets")["Resource"], serde_json::json!(["*"]));
}

#[test]
fn whoever_rotates_by_the_accounts_limit_may_read_it() {
    let text = tunnel("a", 1, "region = \"us-west-2\"\ntarget = \"i-12345678\"\nrotate = \"auto\"")
        + &tunnel("b", 2, "region = \"us-east-1\"\ntarget = \"i-12345678\"\nrotate = \"11h\"");
    let printed = printed(&text, Some("123456789012"));
    assert_eq!(
        statement(&printed[0].1, "MaximumDuration")["Resource"],
        serde_json::json!(["arn:aws:ssm:us-west-2:123456789012:document/SSM-SessionManagerRunShell"])
    );
}

#[test]
fn a_role_has_a_policy_of_its_own_and_whoever_assumes_it_another() {
    let role = "arn:aws-us-gov:iam::210987654321:role/tunnels";
    let keys = format!(
        "target = \"i-12345678\"\nprofile = \"ops\"\nrole_arn = \"{role}\"\nexternal_id = \"hush-hush\""
    );
    let text = tunnel("a", 1, &keys) + &tunnel("b", 2, "target = \"i-12345678\"\nregion = \"cn-north-1\"");
    let printed = printed(&text, None);
    let titles: Vec<_> = printed.iter().map(|(title, _)| title.as_str()).collect();
    let of_role = format!("the role {role}");
    assert_eq!(
        titles,
        ["the host's own role or user, which autossm runs with", &of_role, "the credentials of profile ops"]
    );
    assert_eq!(
        statement(&printed[0].1, "Targets")["Resource"][0],
        "arn:aws-cn:ec2:cn-north-1:*:instance/i-12345678"
    );
    assert_eq!(
        statement(&printed[1].1, "Targets")["Resource"][0],
        "arn:aws-us-gov:ec2:*:210987654321:instance/i-12345678"
    );
    let own = &statement(&printed[1].1, "OwnSessions")["Resource"];
    assert!(own.to_string().contains("arn:aws-us-gov:ssm:*:210987654321:session/autossm-*"), "{own}");
    assert_eq!(statement(&printed[2].1, "AssumeRoles")["Resource"], serde_json::json!([role]));
    assert_eq!(printed[2].1["Statement"].as_array().unwrap().len(), 1, "it needs nothing else");

    let config = parsed(&text);
    let notes = notes(&config.select(&[]).unwrap(), None).join("\n");
    assert!(notes.contains(&format!("{role} has to trust")) && notes.contains("sts:ExternalId"), "{notes}");
    assert!(
        notes.contains("--account") && notes.contains("no `region`") && notes.contains("kms:GenerateDataKey"),
        "{notes}"
    );
    assert!(!notes.contains("hush-hush"), "the external id is not repeated");
}

#[test]
fn what_is_known_needs_no_note() {
    let text = tunnel("a", 1, "region = \"us-west-2\"\ntarget = \"i-12345678\"");
    let config = parsed(&text);
    assert_eq!(notes(&config.select(&[]).unwrap(), Some("123456789012")).len(), 1);
    assert!(
        account("123456789012").is_ok()
            && account("12345678901").is_err()
            && account("12345678901x").is_err()
    );
}

proptest! {
    /// Any configuration's policies are policies.
    #[test]
    fn every_policy_is_one(
        tunnels in proptest::collection::vec((
            prop::sample::select(vec!["\"i-12345678\"", "[\"mi-0123456789abcdef0\", \"i-12345678\"]", "{ tag = \"A=b\" }", "{ tag = \"x:y=${*}\" }"]),
            prop::sample::select(vec!["", "region = \"cn-north-1\"", "region = \"us-gov-west-1\"", "region = \"eu-central-1\""]),
            prop::sample::select(vec!["", "profile = \"p\"", "role_arn = \"arn:aws:iam::123456789012:role/r\""]),
            prop::sample::select(vec!["", "remote_host = \"db\"", "document = \"Own\"", "gateway = \"observe\""]),
        ), 1..8),
    ) {
        let text: String = tunnels.iter().enumerate().map(|(number, (target, region, identity, other))| {
            let keys = format!("target = {target}\n{region}\n{identity}\n{other}");
            tunnel(&format!("t{number}"), 1000 + u16::try_from(number).unwrap(), &keys)
        }).collect();
        prop_assert!(!printed(&text, None).is_empty());
    }
}
