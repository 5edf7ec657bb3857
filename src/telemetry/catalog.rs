//! Every kind of event: its word, its fixed id in the journal, and what it means.
//!
//! `journalctl -x` shows the explanation beneath a line, from the file that [`file()`] makes of this table.

/// One kind of event.
#[derive(Debug)]
pub struct Entry {
    /// The word in the field `event` (`AUTOSSM_EVENT=`).
    pub event: &'static str,
    /// `MESSAGE_ID=`. Never changed and never used again: people have filters for it.
    pub id: &'static str,
    /// What has happened, in one line.
    pub subject: &'static str,
    /// What that means and what to do. `@FIELD@` stands for the line's own value.
    pub text: &'static str,
}

/// The entry of this event.
pub fn find(event: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.event == event)
}

/// What is to be done about an event: what stands after the first paragraph of its text, and of that, where the event has
/// several causes, the paragraph that begins with `cause: `. On one line, without the cause's name.
pub fn remedy(event: &str, cause: Option<&str>) -> Option<String> {
    let (_, remedies) = find(event)?.text.split_once("\n\n")?;
    let found = match cause {
        None => remedies,
        Some(cause) => {
            remedies.split("\n\n").find_map(|text| text.strip_prefix(cause)?.strip_prefix(": "))?
        }
    };
    Some(found.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The message catalog, to be installed as `/usr/lib/systemd/catalog/autossm.catalog`.
pub fn file() -> String {
    let mut file = String::from(
        "# What autossm's log lines mean: journalctl -x -u 'autossm@*'\n\
         # Made from src/telemetry/catalog.rs by `AUTOSSM_BLESS=1 cargo test --lib catalog`.\n",
    );
    for Entry { id, subject, text, .. } in ENTRIES {
        file += &format!(
            "\n-- {id}\nSubject: {subject}\nDefined-By: autossm\nDocumentation: man:autossm@.service(8)\n\n{text}\n"
        );
    }
    file
}

/// All that there are.
pub static ENTRIES: &[Entry] = &[
    Entry {
        event: "listening",
        id: "a00c22071c50400d890f87753bd0e21e",
        subject: "A local address is served",
        text: "autossm has bound @AUTOSSM_LISTEN@ for tunnel @AUTOSSM_TUNNEL@. Clients that connect while\n\
               there is no session wait for one, up to `hold`.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "web_listening",
        id: "b43c6c08da0d4fb6846c9d37547d7615",
        subject: "The page is served",
        text: "autossm web listens on @AUTOSSM_LISTEN@ for browsers and Prometheus.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "adopted",
        id: "edfa80304e7540ebaacc75c8dd5bfbe5",
        subject: "A local address was taken over from the process before",
        text: "systemd has kept the listening socket @AUTOSSM_LISTEN@ of tunnel @AUTOSSM_TUNNEL@ while\n\
               the daemon was restarted. Clients that connected in between are served now; none was\n\
               refused.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "not_adopted",
        id: "fc30438231de4ea7864e50c34aa8cb5b",
        subject: "A kept listening socket was of no use",
        text: "systemd has handed over a socket under the name @AUTOSSM_FDNAME@ which is not what the\n\
               configuration asks for: @AUTOSSM_REASON@. It is closed and forgotten; an address that the\n\
               configuration has is bound anew.\n\n\
               This is normal after `listen` or the tunnels' names have changed. Otherwise look who\n\
               removed the socket's file.",
    },
    Entry {
        event: "closed",
        id: "c7709e38454740a39c1d88b948c92a83",
        subject: "A local address is no longer served",
        text: "The configuration no longer has @AUTOSSM_LISTEN@ for tunnel @AUTOSSM_TUNNEL@. New clients\n\
               are refused there; connections that came through it go on.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "bind_failed",
        id: "9119f80964a940eab322d51901257b3f",
        subject: "A local address cannot be bound",
        text: "Another process has the address, or this host does not have it, or the folder of the\n\
               socket file is missing. The line names the address and, where that can be read, the\n\
               process.\n\n\
               End that process or change `listen`. A port below 1024 needs the capability\n\
               CAP_NET_BIND_SERVICE (see autossm@.service(8)). The daemon has ended with status 69 and is\n\
               started again by systemd.",
    },
    Entry {
        event: "started",
        id: "e87216e4fd614657a89cee52be27f3da",
        subject: "A session was started",
        text: "StartSession has answered for tunnel @AUTOSSM_TUNNEL@ with session @AUTOSSM_SESSION@ on\n\
               target @AUTOSSM_TARGET@. The plugin is started next.\n\n\
               Nothing has to be done. The session's id is the one that the console and CloudTrail show.",
    },
    Entry {
        event: "credentials_expiring",
        id: "274b70115de6475e9197629f832d192e",
        subject: "AWS credentials expire soon and cannot be renewed",
        text: "The credentials of profile @AUTOSSM_PROFILE@ (role @AUTOSSM_ROLE@) expire at\n\
               @AUTOSSM_EXPIRES@: @AUTOSSM_REASON@.\n\n\
               Without new ones no session can be started, and none resumed after its next hourly close.\n\
               Renew them as the line says, as the daemon's user. A restart is not needed: the next call\n\
               uses them.",
    },
    Entry {
        event: "credentials_renewed",
        id: "a2916e4713154eb49c1963c26b3ae1aa",
        subject: "AWS credentials were renewed after all",
        text: "New credentials were found after a warning that the old ones would expire.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "credentials_expiry_unknown",
        id: "1254b51634b84b8d964c0a81b02e2158",
        subject: "AWS credentials are temporary and do not say until when",
        text: "The credentials have a session token and no time of expiry. They will cease to work without\n\
               a warning.\n\n\
               Use a role, aws sso login or a credential_process; or write x_security_token_expires beside\n\
               them.",
    },
    Entry {
        event: "target_passed_over",
        id: "b8b090b8d43444c3bfbbdb0d9b4df7d5",
        subject: "A target is refused, and another one is tried",
        text: "StartSession was refused for target @AUTOSSM_TARGET@ of tunnel @AUTOSSM_TUNNEL@:\n\
               @AUTOSSM_REASON@. The next one is tried at once; this one again with a later session.\n\n\
               Nothing has to be done if the instance was replaced. Otherwise look at the SSM agent on\n\
               the target, or at the policy or id that the reason names.",
    },
    Entry {
        event: "agent_too_old",
        id: "4a5cfc9ae84f4f4f9809b4750b603055",
        subject: "The target's SSM agent is too old",
        text: "The agent on the target of tunnel @AUTOSSM_TUNNEL@ has version @AUTOSSM_AGENT_VERSION@:\n\
               @AUTOSSM_REASON@.\n\n\
               Update it: aws ssm send-command --document-name AWS-UpdateSSMAgent --targets …, or the\n\
               package amazon-ssm-agent on the node. New sessions have the new agent; a restart is not\n\
               needed.",
    },
    Entry {
        event: "ready",
        id: "9ad261b1b43e4eb0a6275ada8008a441",
        subject: "A session serves",
        text: "Session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ takes connections,\n\
               @AUTOSSM_DURATION_MS@ ms after it was asked for.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "interrupted",
        id: "28904dd0cb844f0e9a7bf6b3279f4878",
        subject: "A session does not serve at the moment",
        text: "Session @AUTOSSM_SESSION@ is interrupted: @AUTOSSM_REASON@ (@AUTOSSM_CAUSE@). Open connections\n\
               wait and lose nothing; new ones are held, and get another session after `failover_after`.\n\n\
               closed: Nothing has to be done if a line that says 'resumed' follows: the service closes each data\n\
               channel every hour. If none does, look for 'resume_failed' and 'failover'.\n\n\
               gap: Nothing has to be done: the agent sends again what is missing, ten messages a second, and\n\
               new connections get another session. If it happens often, look for what loses packets or\n\
               connections between the target and AWS.",
    },
    Entry {
        event: "resumed",
        id: "c1f5a4424e9441eea7c17ccad0d63d1c",
        subject: "The data channel is open again",
        text: "Session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ was resumed after\n\
               @AUTOSSM_DURATION_MS@ ms. Connections that were open go on.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "resume_failed",
        id: "a21928a2c900463c8e093c2031dfaba6",
        subject: "The data channel could not be opened yet, or not again",
        text: "ResumeSession, or the connection after it, has failed for session @AUTOSSM_SESSION@:\n\
               @AUTOSSM_REASON@. The attempts go on; this line is written once for each kind of failure.\n\n\
               If it speaks of access or credentials, look at the host's role: it needs ssm:ResumeSession\n\
               on its own sessions. If it speaks of the network, look at the way to ssmmessages: what answers\n\
               there instead of the service, such as a proxy, is named with what it has answered.",
    },
    Entry {
        event: "encrypted",
        id: "b402f62a52a645fe94dad415ac9aa254",
        subject: "The session is encrypted with a KMS key",
        text: "The account has its sessions encrypted: the data of session @AUTOSSM_SESSION@ is, with a key that\n\
               KMS has made. No keep-alives are sent in it, so that the account's idle timeout ends it when\n\
               nothing flows; the next one is started then, and clients are held until it is up.\n\n\
               If that is not wanted, let a client send something now and then, or have the account's idle\n\
               timeout raised.",
    },
    Entry {
        event: "lone_byte",
        id: "ac930fbaa7ce4824a23d8a631cfaf797",
        subject: "A line feed may have been changed in an encrypted session",
        text: "The plugin changes a message that is a single line feed into a carriage return. In encrypted\n\
               sessions that cannot be undone, so that data is handed to the plugin in portions that leave no\n\
               single byte over; but session @AUTOSSM_SESSION@ has sent one. If it was a line feed, a client's\n\
               connection has carried a wrong byte.\n\n\
               Look whether something else on this host connects to the plugin's own port: what it sends is\n\
               not counted. If nothing does, and it happens again, please report it.",
    },
    Entry {
        event: "failover",
        id: "74ef18d2c1cc492fb2e908e44b1bfe0b",
        subject: "A second session is started beside one that is interrupted",
        text: "The data channel of session @AUTOSSM_SESSION@ has been down for `failover_after`. New\n\
               connections get a session of their own; the old one is being resumed for the connections\n\
               that are open on it, for up to `resume_for`.\n\n\
               Nothing has to be done here. If it happens often, look at the way to ssmmessages.",
    },
    Entry {
        event: "replacing",
        id: "59085b7aa19d4cb79ba4279e0c7c9b9a",
        subject: "A session is being replaced",
        text: "Session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ works and is replaced all the same:\n\
               @AUTOSSM_REASON@. Its open connections go on; up to `drain`, unless it is for the\n\
               destination's sake or for the account's maximum session duration.\n\n\
               Nothing has to be done. Where another process has connected to the plugin's port, find out\n\
               which one: clients belong on the tunnel's own address.",
    },
    Entry {
        event: "retired",
        id: "b4dc1659f090458f8d4f61e5afbabef5",
        subject: "A session takes no new connections",
        text: "Session @AUTOSSM_SESSION@ was replaced and lives until its last connection is closed;\n\
               @AUTOSSM_OPEN@ are open.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "serves_again",
        id: "450679efe89e4a22a38e932283810645",
        subject: "A replaced session serves again",
        text: "The session that has taken the place of @AUTOSSM_SESSION@ is gone, interrupted or stalled, and this one is\n\
               up: it takes new connections again.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "stalled",
        id: "4bddaf4fcc1c4d869b94069600c0ba54",
        subject: "A client that does not read holds up a session",
        text: "A client of session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ does not read what comes for it, and as\n\
               much is kept for it as client_buffer says. The plugin has one buffer for all connections, so that\n\
               the @AUTOSSM_OPEN@ connections that are open on this session will soon stand still with it. New\n\
               connections go to another session, which is started if need be; at most three are started for this.\n\n\
               The event client_stalled says which client it is. It is closed after stalled_client_timeout.",
    },
    Entry {
        event: "flows",
        id: "c8981ac2968b48b3857e79bd68b5aa1f",
        subject: "A session is held up no more",
        text: "What held up session @AUTOSSM_SESSION@ has gone: its client reads again, or was closed.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "client_stalled",
        id: "11a01b46c73149b7bd8a76750f72873e",
        subject: "A client does not read",
        text: "The client @AUTOSSM_CLIENT@ of tunnel @AUTOSSM_TUNNEL@ takes less than its destination sends; @AUTOSSM_WAITING@ bytes\n\
               wait for it. The other connections of session @AUTOSSM_SESSION@ will soon stand still. At most one line\n\
               a second tells of it.\n\n\
               Find out why the client does not read. A larger client_buffer gives it more time.",
    },
    Entry {
        event: "client_stalled_closed",
        id: "b830018b048f4a7e85e82a5f60b298ff",
        subject: "A client that did not read was closed",
        text: "The client @AUTOSSM_CLIENT@ of tunnel @AUTOSSM_TUNNEL@ has taken nothing for stalled_client_timeout, while\n\
               @AUTOSSM_WAITING@ bytes waited for it. It was reset, for the sake of the others.\n\n\
               Find out why the client did not read.",
    },
    Entry {
        event: "ended",
        id: "ee45ebce0fb5475ba0b5baf00dbeb7cd",
        subject: "A session has ended as intended",
        text: "Session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ has ended: @AUTOSSM_REASON@.\n\
               @AUTOSSM_CUT@ connections were cut with it.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "lost",
        id: "6d051567586a47c386db63a19ba42616",
        subject: "A session was lost",
        text: "Session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ has ended without being asked to:\n\
               @AUTOSSM_REASON@. @AUTOSSM_CUT@ connections were cut with it. A new session is started at\n\
               once, and clients that connect wait for it.\n\n\
               plugin killed: find out who has sent the signal: dmesg for the kernel's out-of-memory killer,\n\
               MemoryMax= of the unit, an operator. If nobody did and it happens again, please report it.\n\n\
               plugin exited: if it happens again, run with --log-level debug to see what it says.\n\n\
               plugin hangs: nothing, if it was once: it was killed and replaced. If it happens again, look\n\
               whether the host is short of CPU or memory, or somebody stops the process. With\n\
               `gateway = \"observe\"` it happens when an hourly close meets the plugin sending.\n\n\
               terminated: somebody has ended the session with TerminateSession or in the console; CloudTrail\n\
               has the name.\n\n\
               idle timeout: the account ends sessions through which nothing flows. Set `keepalive`. Where\n\
               none are sent (`autossm status NAME` says \"no keep-alive\" and why: gateway = \"observe\", an\n\
               encrypted session), have the account's idle timeout raised, or let clients send something.\n\n\
               maximum duration: with `rotate = \"auto\"` the next session is replaced before the account's\n\
               maximum session duration is over.\n\n\
               ended: the service has ended the session. If it happens again, look in CloudTrail, and at the\n\
               agent on the target.",
    },
    Entry {
        event: "failed",
        id: "845bf98658cb41288d350ee507fe7733",
        subject: "No session could be had",
        text: "Tunnel @AUTOSSM_TUNNEL@ has no session: @AUTOSSM_REASON@ (@AUTOSSM_CLASS@). The line says\n\
               when the next attempt is made; clients wait, up to `hold`. `autossm why` names the cause.\n\n\
               denied: allow what is denied to the daemon's credentials; `autossm policy` prints the least\n\
               that the tunnels need.\n\n\
               credentials: attach a role to the host, or renew what `profile` names, as the daemon's user.\n\
               A restart is not needed: the next attempt uses them.\n\n\
               expired: renew the credentials, as the daemon's user (aws sso login, or whoever issues them);\n\
               or use a role, which renews itself. A restart is not needed.\n\n\
               clock: set this host's clock (timedatectl, chronyc tracking); AWS refuses what is signed more\n\
               than 5 minutes off.\n\n\
               key: the account encrypts its sessions with a KMS key. Allow kms:GenerateDataKey on it to the\n\
               daemon's credentials, and see that the key is enabled.\n\n\
               forbidden: look at the proxy on the way to AWS, or at the VPC endpoint's policy: that was not\n\
               an answer of the API's.\n\n\
               document: correct `document` or `parameters`, and reload. It must be a document for port\n\
               forwarding, in this account and region.\n\n\
               plugin: install the session-manager-plugin, or correct `plugin`, and reload.\n\n\
               host: nothing, unless it lasts: a host that is just being started has other things to do. Then\n\
               see what it is short of: memory, processes, disk (dmesg, free, df).\n\n\
               needs a change: correct the configuration and reload; `autossm check` shows what it can see.\n\n\
               target not connected: look at amazon-ssm-agent on the target, whether the target runs, and at\n\
               its way to the service: aws ssm describe-instance-information shows its PingStatus.\n\n\
               throttled: nothing, unless it lasts. Then find out who else calls Session Manager in this\n\
               account and region.\n\n\
               service: nothing, unless it lasts; then look at https://health.aws.amazon.com/health/status.\n\n\
               unreachable: look at this host's way to ssm and ssmmessages in the region: names, routes,\n\
               firewall, proxy.\n\n\
               agent: look at amazon-ssm-agent on the target: is it running, and not out of memory or disk?\n\
               Restart it there if nothing else helps.",
    },
    Entry {
        event: "not_terminated",
        id: "d6dd84500b5346b0bdee7d829f074a74",
        subject: "A session could not be terminated",
        text: "TerminateSession has failed for session @AUTOSSM_SESSION@: @AUTOSSM_REASON@. It stays on\n\
               record, and the next process of this tunnel terminates it; the service ends it by itself\n\
               when it is idle.\n\n\
               If it speaks of access: the host's role needs ssm:TerminateSession on its own sessions.",
    },
    Entry {
        event: "leftover",
        id: "09979642bd3747358685767cc0f7aa2e",
        subject: "A session that was left behind was terminated",
        text: "A process that was killed had left session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ at\n\
               the service; or this one had, because the service terminated nothing at the time.\n\n\
               Nothing has to be done here. Look further up why that was.",
    },
    Entry {
        event: "survivor_ended",
        id: "cd006e6ce8fb439a8baa3e9dc697ab04",
        subject: "A plugin that had outlived its daemon was ended",
        text: "A process of autossm was killed, and its plugin with the process id @AUTOSSM_PID@ ran on, of no use to\n\
               anybody. Its session is terminated like all that were left behind.\n\n\
               Nothing has to be done here. Look further up for who killed the process: under systemd its plugins\n\
               would have ended with it.",
    },
    Entry {
        event: "probed",
        id: "f5ab8cf4db694daabdaebd2204232c7b",
        subject: "The destination was probed",
        text: "A probe through session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ has ended; the line says\n\
               what it found.\n\n\
               Nothing has to be done. What follows from a row of them is told by lines of their own.",
    },
    Entry {
        event: "probe_without_login",
        id: "2e8ba212b571446a83b617f1cff2519b",
        subject: "Probes may lock the target out",
        text: "Tunnel @AUTOSSM_TUNNEL@ probes its destination with connections that end without a login.\n\
               MySQL and MariaDB count those, and after `max_connect_errors` in a row (100) refuse every\n\
               connection from the target, which is where all clients come from.\n\n\
               Where the destination is such a server, take the probe out. Elsewhere nothing has to be done.",
    },
    Entry {
        event: "down",
        id: "be01c42a4a824e0a94d6f55e5dba1565",
        subject: "The tunnel does not serve its clients",
        text: "No session of tunnel @AUTOSSM_TUNNEL@ has taken new connections for @AUTOSSM_DURATION_MS@ ms: clients\n\
               that connect are held, as long as `hold` allows. Reason: @AUTOSSM_REASON@. An hourly close that is\n\
               resumed does not take as long. Said once; the line `back` tells of its end.\n\n\
               `autossm why @AUTOSSM_TUNNEL@` says what to do.",
    },
    Entry {
        event: "back",
        id: "84337a29aad049458dcf188393931319",
        subject: "The tunnel serves its clients again",
        text: "New connections to tunnel @AUTOSSM_TUNNEL@ get through again, @AUTOSSM_DURATION_MS@ ms after the last\n\
               session had ceased to take them.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "degraded",
        id: "fcacfdaf031f47d29358e70149eff010",
        subject: "The destination is down",
        text: "The tunnel @AUTOSSM_TUNNEL@ is up as far as the target's agent, but the destination behind it\n\
               cannot be reached or does not answer as it should: @AUTOSSM_REASON@. This was seen by probes\n\
               (`[tunnel.probe]`), or three connections of clients in a row were refused. The session is\n\
               replaced once, to have the destination's name resolved anew, and then every five minutes at\n\
               the most, as long as this goes on. Said once; the line `recovered` tells of its end.\n\n\
               Look whether the destination is up, listens on `remote_port` and can be reached from the\n\
               target: security groups, a failover, a name that points elsewhere.",
    },
    Entry {
        event: "recovered",
        id: "a8108db4025345a08a33fa91579c573e",
        subject: "The destination can be reached again",
        text: "A probe or a client's connection through session @AUTOSSM_SESSION@ of tunnel\n\
               @AUTOSSM_TUNNEL@ got an answer, @AUTOSSM_DURATION_MS@ ms after the destination had been\n\
               found to be down.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "limit_learned",
        id: "fc2927e218c74a3e8d13746784b8ca2b",
        subject: "The account has a maximum session duration",
        text: "The service ends sessions of this account at the age of @AUTOSSM_DURATION_MS@ ms, as its\n\
               Session Manager preferences say or as a session has met it. With `rotate = \"auto\"` tunnel\n\
               @AUTOSSM_TUNNEL@ replaces each session before that, at nine tenths of it at the latest. A\n\
               new session is ready before the old one takes no more connections.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "limit_dropped",
        id: "e21f7b7097fc4bf5b3c9b57bfbaa80f8",
        subject: "Sessions are not ended at the age that was believed",
        text: "Tunnel @AUTOSSM_TUNNEL@ may not read the account's Session Manager preferences and had learned from\n\
               its sessions' ends that the service ends them at the age of @AUTOSSM_DURATION_MS@ ms. A session has\n\
               outlived that, or the preferences say now that there is no maximum. With `rotate = \"auto\"`\n\
               sessions are not replaced for it any more.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "destination_failed",
        id: "f43fe7bf4914435bbe8d417d07424321",
        subject: "The agent could not reach the destination",
        text: "The target's agent could not connect to `remote_host` and `remote_port` for a client of\n\
               tunnel @AUTOSSM_TUNNEL@; the client's connection was closed. After three of these within a\n\
               minute the destination's name is resolved anew by a new session.\n\n\
               Look whether the destination is up and can be reached from the target.",
    },
    Entry {
        event: "holding",
        id: "09dce00fb5ba401cb90f3fd88c0a7e1a",
        subject: "Clients are waiting",
        text: "Tunnel @AUTOSSM_TUNNEL@ has no session that takes connections. Clients that connect are\n\
               held, up to `hold`, and go on when there is one.\n\n\
               The lines before this one say what the tunnel waits for.",
    },
    Entry {
        event: "keep_alive",
        id: "5d0b3a0e8c7f4f6b9d21c47e60f3ab18",
        subject: "A keep-alive was sent to the agent",
        text: "Nothing has flowed through session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ for `keepalive`.\n\
               A frame that says nothing was put into the stream, so that the session does not run into the\n\
               account's idle timeout. Said at trace level only.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "keepalive_off",
        id: "0854812901b841748bb96e4111ffcc89",
        subject: "No keep-alives are sent",
        text: "With `gateway = \"observe\"` autossm cannot put anything into the stream of tunnel @AUTOSSM_TUNNEL@.\n\
               A session that nobody uses ends with the account's idle timeout, and another one is started. An\n\
               agent that is gone is noticed only by a client that has sent something.\n\n\
               Have the account's idle timeout raised, or let clients send something themselves; or use\n\
               `gateway = \"hold\"`.",
    },
    Entry {
        event: "round_trip",
        id: "79449cd6da424d8c9f58167be4e892d3",
        subject: "The agent has acknowledged a message",
        text: "A message of session @AUTOSSM_SESSION@ of tunnel @AUTOSSM_TUNNEL@ was acknowledged by the agent\n\
               after @AUTOSSM_DURATION_US@ µs. Said at debug level only, of each keep-alive and every 5 s of others.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "line_feeds_not_restored",
        id: "b0c41f5e9d374c0f8a52e6d17f0b3c94",
        subject: "Line feeds are not restored",
        text: "Tunnel @AUTOSSM_TUNNEL@ has `gateway = \"observe\"`. The plugin changes some line feeds\n\
               into carriage returns; autossm can undo that only where it may read the data channel.\n\n\
               Use `gateway = \"hold\"`, unless TLS must not be ended on this host. Protocols that are\n\
               not sensitive to it, such as HTTP, are not harmed; TLS and databases may see a broken\n\
               connection now and then.",
    },
    Entry {
        event: "held_released",
        id: "67d83eefbeee420a931bab517fb83951",
        subject: "Clients that waited were served",
        text: "@AUTOSSM_CLIENTS@ clients of tunnel @AUTOSSM_TUNNEL@ have waited for a session and got\n\
               one; the longest wait was @AUTOSSM_DURATION_MS@ ms.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "held_timed_out",
        id: "06a37f03de9e47e0a069118cca6328fc",
        subject: "Clients waited in vain",
        text: "@AUTOSSM_CLIENTS@ clients of tunnel @AUTOSSM_TUNNEL@ have waited for `hold` without\n\
               getting a session, and were closed.\n\n\
               The lines with the event 'failed' say why there was none. A longer `hold` lets clients sit\n\
               out longer outages, as far as they have the patience.",
    },
    Entry {
        event: "client_refused",
        id: "36b7815bd9ae4d6f88674eff59271972",
        subject: "A client was closed at once",
        text: "A limit of tunnel @AUTOSSM_TUNNEL@ is reached: @AUTOSSM_REASON@. Connections beyond it are\n\
               closed at once. At most one line a second tells of it.\n\n\
               Raise the limit, or find out who opens so many connections.",
    },
    Entry {
        event: "accept_failed",
        id: "da632d2d3dd54097a824ff4c687995cb",
        subject: "A client could not be accepted",
        text: "The kernel has refused a connection on @AUTOSSM_LISTEN@: @AUTOSSM_REASON@. It is tried\n\
               again; the client waits meanwhile.\n\n\
               Most often the process has no file descriptor left: raise LimitNOFILE= in a drop-in, or\n\
               lower `max_connections`.",
    },
    Entry {
        event: "changed",
        id: "3e00d52a5f8047f9bc9641efa601234c",
        subject: "A tunnel's configuration has changed",
        text: "A reload has changed tunnel @AUTOSSM_TUNNEL@. Sessions are replaced only where that is\n\
               needed, the new one being ready before the old one drains.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "removed",
        id: "f9ff844c6d7647b9bc375f828a72fd5d",
        subject: "A tunnel was taken out of the configuration",
        text: "Tunnel @AUTOSSM_TUNNEL@ takes no more clients. Connections that are open may go on for\n\
               `drain`.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "reloaded",
        id: "d6b4d6290d494c7e9a78534d6be31998",
        subject: "The configuration was reloaded",
        text: "The file as it is now is in force. Tunnels that did not change were not touched.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "reload_refused",
        id: "3268443b4fba4dd7bd478f9334cf5ff5",
        subject: "The configuration was not reloaded",
        text: "The file has errors, or an address in it cannot be bound. Nothing of it was taken on:\n\
               every tunnel goes on with the configuration that it had.\n\n\
               The lines say what is wrong, where, and what would be right; `autossm check` shows them\n\
               too. Correct the file and reload again.",
    },
    Entry {
        event: "config_invalid",
        id: "8cf1a8b29aec4e5897d5d67028c3b28e",
        subject: "The configuration cannot be used",
        text: "The file has errors, or does not have the tunnel that was asked for. Nothing was started;\n\
               the daemon has ended with status 78, and systemd does not start it again.\n\n\
               The line says what is wrong, where, and what would be right; `autossm check` shows all of\n\
               it. Correct the file and start the unit again.",
    },
    Entry {
        event: "stopping",
        id: "544a382661b04907bd5a5c1ea568f273",
        subject: "The daemon is stopping",
        text: "New clients are no longer served, open connections have `stop_grace`, sessions are\n\
               terminated. It ends within 15 seconds. In a restart, clients that connect meanwhile wait\n\
               for the next process; in a stop, they are refused when this one has ended.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "stopped",
        id: "2505b1f9409b4e85a11082794ca00293",
        subject: "The daemon has stopped",
        text: "All tunnels of this process are down; no plugin and no session is left, but for those that\n\
               a line before this one names.\n\n\
               Nothing has to be done, if that was wanted. Otherwise start it: systemctl start\n\
               autossm@NAME.",
    },
    Entry {
        event: "os_fault",
        id: "efde2afc9db94f2bb8956b83144c1327",
        subject: "The operating system refused something",
        text: "The daemon could not do what it needs to run at all; the line says what. It has ended with\n\
               status 71 and is started again by systemd.\n\n\
               Look at limits, permissions and free space of the runtime directory.",
    },
    Entry {
        event: "stuck",
        id: "3129ed5974a34bb2a51201bd3295680a",
        subject: "A tunnel does not answer",
        text: "Tunnel @AUTOSSM_TUNNEL@ has done nothing for longer than half of WatchdogSec=. systemd is\n\
               no longer told that the daemon is alive, and restarts it; its addresses are kept, and\n\
               clients that connect meanwhile are served afterwards.\n\n\
               This is a defect of autossm, or a host that gave it no time at all. Please report it with\n\
               the log of the minutes before.",
    },
    Entry {
        event: "journal_behind",
        id: "7ba1e729f9924b2688df7956ffcf8572",
        subject: "Log lines were lost",
        text: "The journal did not take lines as fast as they were written, and autossm does not wait for\n\
               it: @AUTOSSM_LINES@ lines were lost.\n\n\
               Look at the journal's own lines (systemctl status systemd-journald), or log less (--log-\n\
               level).",
    },
    Entry {
        event: "begun",
        id: "e96f991a5193462d856d3bb18aa42745",
        subject: "The daemon runs a tunnel",
        text: "Written for the record of events: whatever was before in tunnel @AUTOSSM_TUNNEL@ is over, said\n\
               or not. The process is a new one, of version @AUTOSSM_VERSION@.\n\n\
               Nothing has to be done, where 'stopped' stands before it. Otherwise the process was killed, or\n\
               the host went down: look at dmesg and journalctl -u autossm@NAME of that time.",
    },
    Entry {
        event: "state",
        id: "93dac0e7ece848cfa40c45949051dfdd",
        subject: "A tunnel's state has changed",
        text: "Written for the record of events, from which the past is drawn: tunnel @AUTOSSM_TUNNEL@ is\n\
               @AUTOSSM_STATE@ now.\n\n\
               Nothing has to be done; why it is so, the lines before it say.",
    },
    Entry {
        event: "requested",
        id: "be10132455f4425a917bcc35d0905750",
        subject: "Somebody has given a command",
        text: "Over the control socket @AUTOSSM_BY@ has asked tunnel @AUTOSSM_TUNNEL@ for\n\
               '@AUTOSSM_COMMAND@'.\n\n\
               drain: clients are held until somebody says `autossm resume NAME`, or the daemon is started anew.\n\n\
               drill: a plugin was killed on purpose, to see the tunnel come back. Nothing has to be done.\n\n\
               rotate, restart, resume: nothing has to be done.",
    },
    Entry {
        event: "plugin_ended",
        id: "b27cd26285574eed8735e80dcf88368f",
        subject: "A plugin has ended",
        text: "Written for the record of events: the plugin of session @AUTOSSM_SESSION@ is gone, and these were\n\
               its last words: @AUTOSSM_REASON@.\n\n\
               Nothing has to be done; what follows from it, other lines say.",
    },
    Entry {
        event: "control_failed",
        id: "8f1aabea07074f94a535879917c9dbed",
        subject: "A tunnel has no control socket",
        text: "@AUTOSSM_PATH@ cannot be served: @AUTOSSM_REASON@. The tunnel is not concerned, but\n\
               `autossm status` and the other commands do not reach it.\n\n\
               Look whether another daemon runs the same tunnel, and who owns the folder; then restart.",
    },
    Entry {
        event: "record_failed",
        id: "66a1c4859b554cadabdf4849ae3694cc",
        subject: "Events cannot be recorded",
        text: "The file of events of tunnel @AUTOSSM_TUNNEL@ in the state directory cannot be written:\n\
               @AUTOSSM_REASON@. The tunnel is not concerned; what happens from here on is in the journal,\n\
               and in memory as long as the daemon runs. This line is written once until it works again.\n\n\
               Look whether the disk is full, and who owns the folder.",
    },
    Entry {
        event: "record_behind",
        id: "518909567b744b1c883c6e8174c84ebb",
        subject: "Some events are not on record",
        text: "The disk was too slow for @AUTOSSM_LOST@ events, and no tunnel waits for its record. The\n\
               journal has them.\n\n\
               If it happens again, look at the disk of the state directory.",
    },
    Entry {
        event: "hook_failed",
        id: "5b0f6d8e2f0a4b7d9c3e61a74d28f9b2",
        subject: "A hook has failed",
        text: "The command of the hook @AUTOSSM_HOOK@ of the configuration could not be run, has exited with\n\
               another status than 0, or was killed: @AUTOSSM_REASON@. Nobody was told of the event\n\
               @AUTOSSM_OF@ by it; it is not tried again, but counted for the next call. No tunnel is\n\
               concerned. This line is written once a minute at the most.\n\n\
               Run the command as the daemon's user with a line of `autossm events --json` on its standard\n\
               input. What it prints is in the log at the level debug: `--log-level info,autossm::hook=debug`.",
    },
    Entry {
        event: "hook_behind",
        id: "c1d7f3a05e8846329b2b7fd0a6e4913c",
        subject: "A hook was not run for some events",
        text: "More has happened than the hook @AUTOSSM_HOOK@ may be run for (`burst`, `min_interval`), or than it can\n\
               keep up with: @AUTOSSM_LEFT_OUT@ events were left out. It has the newest, and is told the number.\n\n\
               Nothing has to be done. `autossm events` has all of them.",
    },
    Entry {
        event: "line_feed_restored",
        id: "d5890bfabbab4998b55e3222913ce65f",
        subject: "A changed byte was put right",
        text: "The plugin has changed a line feed into a carriage return, and autossm has undone it.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "plugin_says",
        id: "6396e2db11164c51b82d0ee029b10d35",
        subject: "The plugin said something",
        text: "A line that the session-manager-plugin of session @AUTOSSM_SESSION@ has printed. It is\n\
               written at the level debug, for whoever looks into a problem; what follows from it,\n\
               autossm says in lines of its own.\n\n\
               Nothing has to be done.",
    },
    Entry {
        event: "usage",
        id: "32466461b6c34cda9fa03af5e8eca61b",
        subject: "What the process has open",
        text: "The daemon's tasks and file descriptors, every second, where the level trace is asked for:\n\
               `--log-level info,autossm::driver::usage=trace`.\n\n\
               Both go up and down with connections and sessions. Numbers that only grow, with no\n\
               connection open, are a fault worth a report.",
    },
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }

    /// Every word that the sources give to the field `event`.
    fn used() -> Vec<(String, String)> {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let words = |(path, text): &(String, String)| -> Vec<(String, String)> {
            let after = text.split(concat!("event", " = \"")).skip(1);
            after.filter_map(|rest| Some((path.clone(), rest.split_once('"')?.0.to_owned()))).collect()
        };
        files.iter().flat_map(words).collect()
    }

    #[test]
    fn every_event_is_explained_and_every_explanation_used() {
        let used = used();
        assert!(used.len() > ENTRIES.len() / 2);
        for (path, event) in &used {
            assert!(find(event).is_some(), "{path}: `{event}` has no entry in the catalog");
        }
        for entry in ENTRIES {
            assert!(used.iter().any(|(_, event)| event == entry.event), "nothing writes `{}`", entry.event);
        }
    }

    #[test]
    fn ids_are_as_the_journal_wants_them_and_unique() {
        for (number, entry) in ENTRIES.iter().enumerate() {
            let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            assert!(entry.id.len() == 32 && entry.id.bytes().all(hex), "{}", entry.event);
            let same = |other: &&Entry| other.id == entry.id || other.event == entry.event;
            assert_eq!(ENTRIES[number..].iter().filter(same).count(), 1, "{}", entry.event);
        }
    }

    #[test]
    fn texts_say_what_to_do_and_begin_no_entry_of_their_own() {
        for entry in ENTRIES {
            assert!(entry.text.contains("\n\n"), "{}: says nothing beyond what it is", entry.event);
            assert!(!entry.subject.contains('\n') && !entry.subject.ends_with('.'), "{}", entry.event);
            let plain = |line: &str| !line.starts_with("--") && !line.starts_with('#');
            assert!(entry.text.lines().all(plain), "{}", entry.event);
            for rest in entry.text.split("@AUTOSSM_").skip(1) {
                let end = rest.find(|char: char| !char.is_ascii_uppercase() && char != '_');
                assert_eq!(end.and_then(|end| rest.get(end..=end)), Some("@"), "{}: {rest}", entry.event);
            }
        }
    }

    /// `AUTOSSM_BLESS=1 cargo test --lib catalog` writes the file again.
    #[test]
    fn the_file_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/autossm.catalog");
        if std::env::var_os("AUTOSSM_BLESS").is_some() {
            fs::write(&path, file()).unwrap();
            return;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, file(), "stale: run AUTOSSM_BLESS=1 cargo test --lib catalog");
    }
}
