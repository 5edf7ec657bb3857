//! PURE. The names that IAM has for what a tunnel needs.

use crate::config::Tunnel;

/// Whose resources: partition, region and account, `*` where they are not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    partition: String,
    region: String,
    account: String,
}

impl Place {
    /// A tunnel's. An account that is not named is that of the role, which is where its sessions are.
    pub(super) fn of(tunnel: &Tunnel, account: Option<&str>) -> Self {
        // arn:PARTITION:iam::ACCOUNT:role/NAME
        let role = tunnel.identity.role_arn.as_deref().map(|arn| arn.split(':').collect::<Vec<_>>());
        let part = |index: usize| role.as_ref().and_then(|parts| parts.get(index).copied());
        let region = tunnel.identity.region.as_deref();
        Self {
            partition: region.map(partition).or(part(1)).unwrap_or("aws").to_owned(),
            region: region.unwrap_or("*").to_owned(),
            account: account.or(part(4)).unwrap_or("*").to_owned(),
        }
    }

    pub(super) fn knows_region(&self) -> bool {
        self.region != "*"
    }

    pub(super) fn knows_account(&self) -> bool {
        self.account != "*"
    }

    /// An instance, a managed node, or the task that a container belongs to.
    pub(super) fn target(&self, id: &str) -> String {
        if let Some(container) = id.strip_prefix("ecs:") {
            // CLUSTER_TASK_RUNTIME, where the cluster's name may have underscores.
            let mut parts = container.rsplitn(3, '_').skip(1);
            let (task, cluster) = (parts.next().unwrap_or("*"), parts.next().unwrap_or("*"));
            return self.arn("ecs", &self.account, &format!("task/{cluster}/{task}"));
        }
        if id.starts_with("mi-") { self.managed_node(id) } else { self.instance(id) }
    }

    pub(super) fn instance(&self, id: &str) -> String {
        self.arn("ec2", &self.account, &format!("instance/{id}"))
    }

    pub(super) fn managed_node(&self, id: &str) -> String {
        self.arn("ssm", &self.account, &format!("managed-instance/{id}"))
    }

    /// AWS's own documents belong to no account.
    pub(super) fn document(&self, name: &str) -> String {
        if name.starts_with("arn:") {
            return name.to_owned();
        }
        let account = if name.starts_with("AWS-") { "" } else { &self.account };
        self.arn("ssm", account, &format!("document/{name}"))
    }

    /// Sessions whose id begins so.
    pub(super) fn sessions(&self, beginning: &str) -> String {
        self.arn("ssm", &self.account, &format!("session/{beginning}*"))
    }

    fn arn(&self, service: &str, account: &str, resource: &str) -> String {
        let Self { partition, region, .. } = self;
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

/// By the region's name.
fn partition(region: &str) -> &'static str {
    let partitions = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("eusc-", "aws-eusc"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
    ];
    partitions.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}
