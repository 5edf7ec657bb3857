//! What one `aws ssm start-session` says, from its words and from the environment that stands before it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::parameters::{self, Parameters};

/// Longest file that an option may name, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A call of the AWS CLI.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StartSession {
    pub target: Option<String>,
    pub document: Option<String>,
    pub parameters: Parameters,
    pub reason: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub endpoint_url: Option<String>,
    pub ca_file: Option<String>,
    /// What has no place in a tunnel, each with the reason.
    pub left_out: Vec<String>,
}

/// Environment variables, as they stand in front of a command or were set before it.
pub(super) type Environment = BTreeMap<String, String>;

/// Options without a value, which a tunnel has no use for.
const SWITCHES: [&str; 9] = [
    "debug",
    "no-verify-ssl",
    "verify-ssl",
    "no-paginate",
    "no-sign-request",
    "no-cli-pager",
    "cli-auto-prompt",
    "no-cli-auto-prompt",
    "version",
];

/// Takes `export A=B`, or assignments alone, into the environment. Returns whether the command was one.
pub(super) fn assigns(words: &[String], environment: &mut Environment) -> bool {
    let words = if words.first().is_some_and(|word| word == "export") {
        words.get(1..).unwrap_or_default()
    } else {
        words
    };
    let assignments: Option<Vec<_>> = words.iter().map(|word| assignment(word)).collect();
    let Some(assignments) = assignments else { return false };
    environment.extend(assignments.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
    true
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = name.chars().all(plain) && name.starts_with(|c: char| !c.is_ascii_digit());
    (is_name && !name.is_empty()).then_some((name, value))
}

impl StartSession {
    /// From a command's words; `None` if it is no `aws ssm start-session`. `environment` is what was set before it.
    ///
    /// # Errors
    /// An option that cannot be understood, in words.
    pub(super) fn read(words: &[String], environment: &Environment) -> Result<Option<Self>, String> {
        let is_aws = |word: &String| word.rsplit('/').next() == Some("aws");
        let Some(at) = words.iter().position(is_aws) else { return Ok(None) };
        let (before, options) = words.split_at(at);
        let mut environment = environment.clone();
        let mut call = Self::default();
        let mut wrapper = Vec::new();
        for word in before {
            match assignment(word) {
                Some((name, value)) => drop(environment.insert(name.to_owned(), value.to_owned())),
                None if wrapper.is_empty() && matches!(word.as_str(), "env" | "exec") => (),
                None => wrapper.push(word.as_str()),
            }
        }
        let mut input = None;
        let mut operation = Vec::new();
        let mut options = options.iter().skip(1).peekable();
        while let Some(word) = options.next() {
            let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) else {
                operation.push(word.as_str());
                continue;
            };
            let (name, joined) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            if SWITCHES.contains(&name) {
                call.leave_out(name);
                continue;
            }
            let known = call.slot(name).is_some() || matches!(name, "parameters" | "cli-input-json");
            // Of an option that is not known, what follows is taken for its value.
            let value = joined.or_else(|| options.next_if(|next| known || !next.starts_with("--")).cloned());
            match (name, value) {
                ("parameters", Some(value)) => call.parameters = parameters::parse(&contents(&value)?)?,
                ("cli-input-json", Some(value)) => input = Some(contents(&value)?),
                ("cli-input-yaml", _) => {
                    return Err("--cli-input-yaml is not understood: write it as JSON".to_owned());
                }
                (name, value) if known => {
                    let value = value.ok_or_else(|| format!("--{name} has no value"))?;
                    if let Some(slot) = call.slot(name) {
                        *slot = Some(value);
                    }
                }
                (name, _) => call.leave_out(name),
            }
        }
        if operation.first() != Some(&"ssm") || operation.get(1) != Some(&"start-session") {
            return Ok(None);
        }
        if let Some(extra) = operation.get(2) {
            return Err(format!("`{extra}` is neither an option nor the value of one"));
        }
        if let Some(input) = input {
            call.fill_in(&input)?;
        }
        call.environment(&environment);
        if let Some(program) = wrapper.first() {
            call.left_out
                .push(format!("`{program} …`: the service runs by itself; see `profile` and `role_arn`"));
        }
        Ok(Some(call))
    }

    fn slot(&mut self, option: &str) -> Option<&mut Option<String>> {
        Some(match option {
            "target" => &mut self.target,
            "document-name" => &mut self.document,
            "reason" => &mut self.reason,
            "region" => &mut self.region,
            "profile" => &mut self.profile,
            "endpoint-url" => &mut self.endpoint_url,
            "ca-bundle" => &mut self.ca_file,
            _ => return None,
        })
    }

    fn leave_out(&mut self, name: &str) {
        let why = match name {
            "no-verify-ssl" => "certificates are always verified; a site's own authority goes into `ca_file`",
            "no-sign-request" => "every call is signed",
            "debug" => "see `autossm run --log-level debug`",
            "cli-read-timeout" | "cli-connect-timeout" => "autossm has limits of its own",
            "output" | "query" | "color" | "no-cli-pager" | "no-paginate" => "nothing is printed",
            _ => "it has no place in a tunnel",
        };
        self.left_out.push(format!("--{name}: {why}"));
    }

    /// `--cli-input-json`: options come before what stands in it.
    fn fill_in(&mut self, text: &str) -> Result<(), String> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| format!("--cli-input-json is not JSON: {e}"))?;
        let object = value.as_object().ok_or("--cli-input-json is not an object")?;
        for (name, value) in object {
            let slot = match name.as_str() {
                "Target" => &mut self.target,
                "DocumentName" => &mut self.document,
                "Reason" => &mut self.reason,
                "Parameters" => {
                    let given = parameters::of_json(value).map_err(|e| format!("--cli-input-json: {e}"))?;
                    if self.parameters.is_empty() {
                        self.parameters = given;
                    }
                    continue;
                }
                _ => {
                    self.left_out.push(format!("{name} of --cli-input-json: it has no place in a tunnel"));
                    continue;
                }
            };
            let text = value.as_str().ok_or_else(|| format!("--cli-input-json: {name} is not a text"))?;
            slot.get_or_insert_with(|| text.to_owned());
        }
        Ok(())
    }

    /// What the AWS CLI takes from the environment where there is no option. A secret is never repeated.
    fn environment(&mut self, environment: &Environment) {
        let get = |names: &[&str]| {
            names.iter().find_map(|name| environment.get(*name)).filter(|value| !value.is_empty()).cloned()
        };
        let fill = |slot: &mut Option<String>, names: &[&str]| {
            if slot.is_none() {
                *slot = get(names);
            }
        };
        fill(&mut self.profile, &["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]);
        fill(&mut self.region, &["AWS_REGION", "AWS_DEFAULT_REGION"]);
        fill(&mut self.endpoint_url, &["AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL"]);
        fill(&mut self.ca_file, &["AWS_CA_BUNDLE"]);
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
            if environment.contains_key(name) {
                self.left_out.push(format!(
                    "{name}: secrets do not belong in a configuration; use the host's role or `profile`"
                ));
            }
        }
        for name in
            ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]
        {
            if environment.contains_key(name) {
                self.left_out.push(format!(
                    "{name}: set it in the service's environment (systemctl edit autossm@.service)"
                ));
            }
        }
    }
}

/// A value, or the contents of the file that it names.
fn contents(value: &str) -> Result<String, String> {
    use std::io::Read as _;

    let Some(path) = value.strip_prefix("file://") else { return Ok(value.to_owned()) };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(read) if read as u64 > MAX_FILE => Err(format!("{path}: the file is larger than 1 MiB")),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::shell;

    fn read(line: &str) -> Result<Option<StartSession>, String> {
        let words = shell::commands(line).unwrap().remove(0);
        StartSession::read(&words, &Environment::new())
    }

    fn call(line: &str) -> StartSession {
        read(line).unwrap().unwrap()
    }

    #[test]
    fn options_stand_in_any_order_and_the_environment_before_them() {
        for line in [
            "aws ssm start-session --target i-1 --profile p --region r --document-name D --reason 'my db'",
            "aws --region=r ssm --profile p start-session --reason='my db' --document-name=D --target i-1",
            "AWS_PROFILE=p AWS_DEFAULT_REGION=x AWS_REGION=r /usr/bin/aws ssm start-session --target i-1 --document-name D --reason 'my db'",
            "env AWS_PROFILE=other aws ssm start-session --target i-1 --profile p --region r --document-name D --reason 'my db'",
        ] {
            let call = call(line);
            let text = |text: &str| Some(text.to_owned());
            assert_eq!(
                (call.target, call.profile, call.region),
                (text("i-1"), text("p"), text("r")),
                "{line}"
            );
            assert_eq!((call.document, call.reason), (text("D"), text("my db")), "{line}");
            assert_eq!(call.left_out, [""; 0], "{line}");
        }
        assert_eq!(call("AWS_REGION= aws ssm start-session --target i-1").region, None);
    }

    #[test]
    fn what_is_left_out_is_named_without_its_value() {
        let call = call(
            "AWS_SECRET_ACCESS_KEY=hunter2 aws-vault exec prod -- aws ssm start-session --no-verify-ssl --target i-1 --weather rain \
             --no-rain --output text",
        );
        let named: Vec<_> = call.left_out.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(
            named,
            [
                "--no-verify-ssl",
                "--weather",
                "--no-rain",
                "--output",
                "AWS_SECRET_ACCESS_KEY",
                "`aws-vault …`"
            ]
        );
        assert!(!format!("{call:?}").contains("hunter2"));
        assert_eq!(call.target.as_deref(), Some("i-1"));
    }

    #[test]
    fn json_input_comes_after_options() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input.json");
        let json = r#"{"Target":"i-1","DocumentName":"D","Reason":"r","Parameters":{"portNumber":["80"]},"Weather":1}"#;
        std::fs::write(&path, json).unwrap();
        let line = format!("aws ssm start-session --cli-input-json file://{} --target i-2", path.display());
        for line in [line, format!("aws ssm start-session --target i-2 --cli-input-json '{json}'")] {
            let call = call(&line);
            assert_eq!((call.target.as_deref(), call.document.as_deref()), (Some("i-2"), Some("D")));
            assert_eq!(call.parameters["portNumber"], ["80"]);
            assert!(call.left_out[0].starts_with("Weather of --cli-input-json"));
        }
        for (input, words) in [
            ("'{'", "--cli-input-json is not JSON"),
            ("'[]'", "--cli-input-json is not an object"),
            ("'{\"Target\":1}'", "--cli-input-json: Target is not a text"),
            ("file:///nonexistent/x", "/nonexistent/x: "),
        ] {
            let error = read(&format!("aws ssm start-session --cli-input-json {input}")).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn other_commands_are_none() {
        for line in ["echo aws", "ls", "aws s3 ls", "aws ssm describe-sessions --state Active", "aws"] {
            assert_eq!(read(line), Ok(None), "{line}");
        }
        assert!(read("aws ssm start-session i-1").unwrap_err().contains("`i-1` is neither"));
        assert!(read("aws ssm start-session --target").unwrap_err().contains("--target has no value"));
    }

    #[test]
    fn assignments_alone_set_what_follows() {
        let mut environment = Environment::new();
        assert!(assigns(&["export".into(), "A=b".into(), "C=".into()], &mut environment));
        assert!(assigns(&["A=c=d".into()], &mut environment));
        assert!(!assigns(&["A=b".into(), "aws".into()], &mut environment));
        assert_eq!((environment["A"].as_str(), environment["C"].as_str()), ("c=d", ""));
    }
}
