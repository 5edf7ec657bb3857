//! What the packages carry for Prometheus and Grafana: rules that fire, queries for what there is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use autossm::control::protocol::Credentials;
use autossm::control::time::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::daemon::PATIENCE;
use crate::sample::{Sample, down};
use crate::site::Web;
use crate::tools::{Tool, program};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

/// Runs promtool on files, or on a text; what it says where it does not like it.
pub async fn promtool(arguments: &[&str], input: &str) {
    let Some(program) = program(Tool::Promtool) else { return };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(packaging("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let done = child.wait_with_output().await.unwrap();
    let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(done.status.success(), "promtool {arguments:?}: {said}");
}
#[tokio::test]
async fn the_rules_are_right_and_fire_when_they_should() {
    promtool(&["check", "rules", "autossm.rules.yml"], "").await;
    promtool(&["test", "rules", "autossm.rules.test.yml"], "").await;
    let rules = std::fs::read_to_string(packaging("prometheus/autossm.rules.yml")).unwrap();
    let tests = std::fs::read_to_string(packaging("prometheus/autossm.rules.test.yml")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        // It fires in one of them: an alert that is only expected to be silent has no expectations.
        let fires = tests.match_indices(&format!("alertname: {alert}\n")).any(|(at, found)| {
            tests[at + found.len()..].lines().next().is_some_and(|next| next.trim() == "exp_alerts:")
        });
        assert!(fires, "{alert} has no test in which it fires");
    }
    for what in ["summary:", "description:", "runbook:"] {
        assert_eq!(rules.matches(what).count(), rules.matches("- alert:").count(), "{what}");
    }
}

/// Every query of a dashboard, with what Grafana would put in for its variables.
fn queries(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match dashboard {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(query) if key == "expr" => found.push(query.clone()),
                    other => found.extend(queries(other)),
                }
            }
        }
        Value::Array(all) => found.extend(all.iter().flat_map(queries)),
        _ => {}
    }
    let variables = [("$__rate_interval", "5m"), ("$job", "autossm"), ("$instance", ".*"), ("$tunnel", ".*")];
    found
        .into_iter()
        .map(|query| variables.iter().fold(query, |query, (name, value)| query.replace(name, value)))
        .collect()
}

#[tokio::test]
async fn the_dashboard_holds_together_and_asks_for_what_there_is() {
    let text = std::fs::read_to_string(packaging("grafana/autossm.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    // What Grafana's importer wants of a dashboard of the classic schema.
    for (key, is) in [
        ("title", dashboard["title"].is_string()),
        ("uid", dashboard["uid"].as_str().is_some_and(|uid| uid.len() <= 40)),
        ("schemaVersion", dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36)),
        ("templating", dashboard["templating"]["list"].is_array()),
        ("annotations", dashboard["annotations"]["list"].is_array()),
        ("time", dashboard["time"]["from"].is_string() && dashboard["time"]["to"].is_string()),
        ("id", dashboard["id"].is_null()),
    ] {
        assert!(is, "{key}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: HashSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");
    let mut taken = HashSet::new();
    for panel in panels {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} lies over another panel", panel["title"]);
            }
        }
        let kinds = ["row", "stat", "timeseries", "state-timeline"];
        assert!(kinds.contains(&panel["type"].as_str().unwrap()), "{}", panel["type"]);
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            assert!(panel["fieldConfig"]["defaults"].is_object() && panel["options"].is_object());
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty() && targets.iter().all(|one| one["refId"].is_string()));
            // Two hosts run the same tunnels.
            for target in targets {
                let words = format!("{} {}", target["legendFormat"], target["expr"]);
                let apart = !words.contains("{{tunnel}}") || words.contains("{{instance}}");
                assert!(apart && !words.contains("by (tunnel"), "{words}");
            }
        }
    }
    let queries = queries(&dashboard);
    assert!(queries.len() > 20);
    for name in ["autossm_tunnel_up", "autossm_tunnel_reachable", "autossm_tunnel_state"] {
        assert!(queries.iter().any(|query| query.contains(name)), "{name} is not shown");
    }
    assert!(queries.iter().all(|query| !query.contains('$')), "{queries:?}");

    // They are right, and of metrics that there are.
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(n, query)| serde_json::json!({ "record": format!("query_{n}"), "expr": query }))
        .collect();
    let file = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    // JSON is YAML.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(file.path(), rules.to_string()).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()], "").await;

    let mut sample = Sample::of(1);
    sample.change("tunnel-000", |status| {
        let expires = Some(Timestamp::now().after(Duration::from_secs(600)));
        status.credentials = Some(Credentials { expires, ..Credentials::default() });
    });
    sample.add(down("down", 2, 60), &[]);
    let web = Web::start(sample.path()).await;
    web.knows(2).await;
    let exported = web.get("/metrics").await.body;
    let rules = std::fs::read_to_string(packaging("prometheus/autossm.rules.yml")).unwrap();
    let words = queries.iter().map(String::as_str).chain([rules.as_str()]);
    let names = words.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    for name in names.filter(|word| word.starts_with("autossm_")) {
        let is = exported.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
        assert!(is, "{name} is asked for and not exported");
    }
}

/// A real Prometheus that scrapes every second, with our rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_takes_it_and_its_alerts_see_it() {
    let Some(program) = program(Tool::Prometheus) else { return };
    let mut sample = Sample::of(2);
    sample.add(down("broken", 3, 600), &[]);
    let web = Web::start(sample.path()).await;
    web.knows(3).await;
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": [packaging("prometheus/autossm.rules.yml")],
        "scrape_configs": [{ "job_name": "autossm", "static_configs": [{ "targets": [web.address.to_string()] }] }],
    });
    std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
    let address = crate::daemon::own_address();
    let mut prometheus = Command::new(program)
        .arg(format!("--config.file={}/prometheus.yml", folder.path().display()))
        .arg(format!("--storage.tsdb.path={}/data", folder.path().display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let query = async |path: &str| -> Option<Value> {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    };
    let began = Instant::now();
    let value =
        |answer: &Value, n: usize| answer["data"]["result"][n]["value"][1].as_str().map(str::to_owned);
    loop {
        let ups = query("/api/v1/query?query=sort(autossm_tunnel_up)").await.unwrap_or_default();
        if (value(&ups, 0), value(&ups, 2)) == (Some("0".into()), Some("1".into())) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{ups}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let up = query("/api/v1/query?query=up").await.unwrap();
    assert_eq!(value(&up, 0).as_deref(), Some("1"), "{up}");
    // A histogram, and a type that only OpenMetrics has: it was asked for as that.
    let metadata = query("/api/v1/metadata?metric=autossm_build").await.unwrap();
    assert_eq!(metadata["data"]["autossm_build"][0]["type"], "info", "{metadata}");
    let buckets =
        query("/api/v1/query?query=autossm_resume_seconds_bucket%7Ble=%22%2BInf%22%7D").await.unwrap();
    assert_eq!(value(&buckets, 0).as_deref(), Some("24"), "{buckets}");
    loop {
        let alerts = query("/api/v1/alerts").await.unwrap_or_default();
        let alerts = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = alerts.iter().filter_map(|alert| alert["labels"]["alertname"].as_str()).collect();
        if names.contains(&"AutossmTunnelDown") {
            let tunnel = &alerts
                .iter()
                .find(|one| one["labels"]["alertname"] == "AutossmTunnelDown")
                .unwrap()["labels"];
            assert_eq!(tunnel["tunnel"], "broken");
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{alerts:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    prometheus.kill().await.unwrap();
}
