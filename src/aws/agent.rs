//! PURE. What an SSM agent is too old for.

/// The last that puts one connection after another through a session, instead of all at once (the plugin's source).
const LAST_WITHOUT_MUX: [u32; 4] = [3, 0, 196, 0];
/// The first that connects to a remote host; older ones take the port for their own (AWS's documentation of
/// `AWS-StartPortForwardingSessionToRemoteHost`).
const FIRST_WITH_REMOTE_HOST: [u32; 4] = [3, 1, 1374, 0];

/// What the operator has to know of an agent of this version, and to do; `None` where all is well, or the version is none.
pub fn shortcoming(version: &str, remote_host: bool) -> Option<String> {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    let parts = parts?;
    let update = "update amazon-ssm-agent on it (AWS-UpdateSSMAgent)";
    if remote_host && parts[..] < FIRST_WITH_REMOTE_HOST[..] {
        return Some(format!(
            "the target's SSM agent {version} cannot connect to a remote host (from 3.1.1374.0 on): {update}"
        ));
    }
    (parts[..] <= LAST_WITHOUT_MUX[..]).then(|| {
        format!(
            "the target's SSM agent {version} carries one connection at a time (more from 3.0.222.0 on), and no \
             keep-alive: {update}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_agents_are_told_of() {
        for (version, remote_host, expected) in [
            ("3.3.2299.0", true, None),
            ("3.1.1374.0", true, None),
            ("3.1.1373.0", true, Some("remote host")),
            ("3.1.1373.0", false, None),
            ("3.0.196.0", false, Some("one connection at a time")),
            ("2.3.672.0", false, Some("one connection at a time")),
            ("2.3.672.0", true, Some("remote host")),
            ("3.0.222.0", false, None),
            ("", false, None),
            ("unknown", true, None),
        ] {
            let said = shortcoming(version, remote_host);
            match expected {
                None => assert_eq!(said, None, "{version}"),
                Some(words) => {
                    assert!(said.clone().is_some_and(|s| s.contains(words)), "{version}: {said:?}")
                }
            }
        }
    }
}
