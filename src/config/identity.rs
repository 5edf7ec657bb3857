//! With whose credentials, and in which region, the API is called.

use super::keys::nearest;
use super::problem::quoted;
use super::value::Wrong;

/// For hints only: a region that AWS opens tomorrow is none the worse.
const REGIONS: &[&str] = &[
    "af-south-1",
    "ap-east-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-west-1",
    "us-west-2",
];

const QUARTERS: &[&str] =
    &["central", "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"];

const PARTITIONS: &[&str] =
    &["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f"];

/// Every region is named PLACE-QUARTER-NUMBER, the quarter being one of the compass.
pub(super) fn region(text: &str) -> Result<String, Wrong> {
    let mut parts = text.rsplitn(3, '-');
    let (number, quarter, place) = (parts.next(), parts.next(), parts.next());
    let numbered = number.is_some_and(|n| matches!(n.as_bytes(), [b'1'..=b'9'] | [b'1'..=b'9', b'0'..=b'9']));
    let placed = place.is_some_and(|place| {
        place.len() >= 2
            && place.split('-').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase()))
    });
    if numbered && placed && quarter.is_some_and(|quarter| QUARTERS.contains(&quarter)) {
        return Ok(text.to_owned());
    }
    let zone = text.strip_suffix(|c: char| c.is_ascii_lowercase());
    let help = if let Some(region) = zone.filter(|zone| region(zone).is_ok()) {
        format!("that is an availability zone: write \"{region}\"")
    } else if let Some(region) = nearest(text, REGIONS.iter().copied()) {
        format!("did you mean \"{region}\"?")
    } else {
        "write a region's name, such as \"us-west-2\" or \"eu-central-1\"".to_owned()
    };
    Err(Wrong::new(format!("{} is not a region", quoted(text)), help))
}

/// `arn:aws:iam::123456789012:role/NAME`, in any partition.
pub(super) fn role_arn(text: &str) -> Result<String, Wrong> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let example = "write \"arn:aws:iam::123456789012:role/NAME\"";
    let ["arn", partition, service, "", account, resource] = *parts.as_slice() else {
        return Err(Wrong::new(format!("{} is not a role ARN", quoted(text)), example));
    };
    let help = if !PARTITIONS.contains(&partition) {
        format!("the second part is a partition: {}, …", PARTITIONS[..3].join(", "))
    } else if resource.starts_with("assumed-role/") {
        "that is a session of a role; write the role's own ARN: \"arn:aws:iam::ACCOUNT:role/NAME\"".to_owned()
    } else if resource.starts_with("instance-profile/") {
        "that is an instance profile; write the ARN of the role: \"arn:aws:iam::ACCOUNT:role/NAME\""
            .to_owned()
    } else if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("{} is not an account id: an account has 12 digits", quoted(account))
    } else if service != "iam" || !resource.strip_prefix("role/").is_some_and(is_role) {
        example.to_owned()
    } else {
        return Ok(text.to_owned());
    };
    Err(Wrong::new(format!("{} is not a role ARN", quoted(text)), help))
}

fn is_role(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 512 + 64
        && !text.ends_with('/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&byte))
}

/// What IAM allows. It is nobody's business but the two parties', so it is not repeated in an error.
pub(super) fn external_id(text: &str) -> Result<String, Wrong> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte);
    if (2..=1224).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        "this is not a valid external id",
        "an external id has 2 to 1224 letters, digits and characters of _+=,.@:/-",
    ))
}

/// A section of `~/.aws/config`.
pub(super) fn profile(text: &str) -> Result<String, Wrong> {
    if !text.is_empty() && text.trim() == text && !text.contains(|c: char| c.is_control() || c == ']') {
        return Ok(text.to_owned());
    }
    let what = format!("{} is not a profile name", quoted(text));
    Err(Wrong::new(what, "write the name as it stands in ~/.aws/config, without `profile` and brackets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_known_and_to_come_are_regions() {
        for text in REGIONS.iter().copied().chain([
            "eusc-de-east-1",
            "us-isob-east-1",
            "ap-southeast-12",
            "xx-north-3",
        ]) {
            assert_eq!(region(text).unwrap(), text);
        }
        for (text, help) in [
            ("us-west2", "did you mean \"us-west-2\"?"),
            ("eu-centrall-1", "did you mean \"eu-central-1\"?"),
            ("US-WEST-2", "did you mean \"us-west-2\"?"),
            ("us-west-2b", "that is an availability zone: write \"us-west-2\""),
            ("Oregon", "write a region's name, such as \"us-west-2\" or \"eu-central-1\""),
            ("", "write a region's name, such as \"us-west-2\" or \"eu-central-1\""),
        ] {
            assert_eq!(region(text).unwrap_err().help, help, "{text}");
        }
        for text in ["us-west-0", "us-west-", "-west-1", "u-west-1", "us--west-1", "us-west-123"] {
            assert!(region(text).is_err(), "{text}");
        }
    }

    #[test]
    fn roles_of_every_partition_are_roles() {
        for text in [
            "arn:aws:iam::123456789012:role/Tunnel",
            "arn:aws-cn:iam::123456789012:role/path/to/Tunnel",
            "arn:aws-us-gov:iam::123456789012:role/a+b=c,d.e@f-g_h",
        ] {
            assert_eq!(role_arn(text).unwrap(), text);
        }
        for (text, help) in [
            ("Tunnel", "write \"arn:aws"),
            ("", "write \"arn:aws"),
            ("arn:aws:iam::123456789012:user/me", "write \"arn:aws"),
            ("arn:aws:iam::123456789012:role/", "write \"arn:aws"),
            ("arn:aws:s3::123456789012:role/x", "write \"arn:aws"),
            ("arn:aws:iam::1234:role/x", "`1234` is not an account id"),
            (
                "arn:azure:iam::123456789012:role/x",
                "the second part is a partition: aws, aws-cn, aws-us-gov, …",
            ),
            ("arn:aws:sts::123456789012:assumed-role/x/y", "that is a session of a role"),
            ("arn:aws:iam::123456789012:instance-profile/x", "that is an instance profile"),
        ] {
            let wrong = role_arn(text).unwrap_err();
            assert!(wrong.help.starts_with(help), "{text}: {}", wrong.help);
        }
    }

    #[test]
    fn an_external_id_is_not_repeated() {
        assert!(external_id("a/b:c-1").is_ok());
        for text in ["x", "has space", ""] {
            assert!(!external_id(text).unwrap_err().what.contains('`'), "{text}");
        }
    }

    #[test]
    fn profiles_are_section_names() {
        assert!(profile("ops team").is_ok());
        assert!(profile("").is_err() && profile(" a").is_err() && profile("[profile a]").is_err());
    }
}
