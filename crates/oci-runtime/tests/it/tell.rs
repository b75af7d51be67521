//! list, events, features, spec, version.

use std::fs;

use serde_json::Value;

use crate::support::Bundle;

#[test]
fn containers_are_listed() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
    bundle.create(&[]);
    assert_eq!(bundle.ok(&["list", "-q"]), format!("{}\n", bundle.id));
    let table = bundle.ok(&["list"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert_eq!((rows[1][0], rows[1][2], rows[1][5]), (bundle.id.as_str(), "created", "root"));
    let json: Value = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).unwrap();
    assert_eq!(json[0]["status"], "created");
    assert!(bundle.fails(&["list", "--format", "xml"]).contains("xml"));
}

#[test]
fn resource_use_is_told_in_runcs_shape() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]).with(|spec| {
        let resources = spec.linux_mut().resources.get_or_insert_default();
        resources.pids = Some(proa_oci::runtime::Pids { limit: 33 });
    });
    bundle.start();
    let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(bundle.id.as_str())));
    assert_eq!(event["data"]["pids"], serde_json::json!({ "current": 1, "limit": 33 }));
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    // At intervals, until the end.
    let mut command = bundle.command(&["events", "--interval", "10ms", &bundle.id]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..2 {
        assert!(lines.next().unwrap().unwrap().contains("\"stats\""));
    }
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    assert!(lines.all(|line| line.is_ok()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn features_and_version_are_told() {
    let bundle = Bundle::program(&["/bin/true"]);
    let features: Value = serde_json::from_str(&bundle.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    let checkpoint = |criu: &str| {
        let features: Value = serde_json::from_str(&bundle.ok(&["--criu", criu, "features"])).unwrap();
        features["annotations"]["org.opencontainers.runc.checkpoint.enabled"].clone()
    };
    assert_eq!([checkpoint("/bin/true"), checkpoint("/no/such/criu")], ["true", "false"]);
    let version = bundle.ok(&["--version"]);
    assert!(version.starts_with("proa-runtime version ") && version.contains("\nspec: 1."), "{version}");
    assert_eq!(bundle.ok(&["-v"]), version);
    assert!(bundle.ok(&["--help"]).contains("create"));
}

#[test]
fn the_spec_that_is_written_can_be_run() {
    let bundle = Bundle::program(&["/bin/true"]);
    let path = bundle.path("");
    bundle.ok(&["spec", "--bundle", path.to_str().unwrap()]);
    assert!(bundle.fails(&["spec", "--bundle", path.to_str().unwrap()]).contains("exists"));
    let file = bundle.path("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    spec["process"]["args"] = serde_json::json!(["hostname"]);
    spec["process"]["terminal"] = false.into();
    fs::write(&file, spec.to_string()).unwrap();
    assert_eq!(bundle.ok(&["run", "--bundle", path.to_str().unwrap(), &bundle.id]), "proa\n");
    fs::remove_file(&file).unwrap();
    bundle.ok(&["spec", "--rootless", "--bundle", path.to_str().unwrap()]);
    let spec: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(spec["linux"]["uidMappings"][0]["containerID"], 0);
}

#[test]
fn limits_can_be_changed_while_it_runs() {
    let bundle = Bundle::program(&["/bin/sleep", "1000"]);
    bundle.start();
    let limit = || {
        let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
        event["data"]["pids"]["limit"].as_u64().unwrap()
    };
    // One that had no limit, and so has not joined its cgroup perhaps.
    bundle.ok(&["update", "--pids-limit", "44", &bundle.id]);
    assert_eq!(limit(), 44);
    let file = bundle.path("resources.json");
    fs::write(&file, r#"{"pids":{"limit":55}}"#).unwrap();
    bundle.ok(&["update", &bundle.id, "--resources", file.to_str().unwrap()]);
    assert_eq!(limit(), 55);
    let mut command = bundle.command(&["update", "-r", "-", &bundle.id]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), br#"{"pids":{"limit":66}}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(limit(), 66);
    assert!(bundle.fails(&["update", "--kernel-memory", "1", &bundle.id]).contains("kernel-memory"));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    assert!(bundle.fails(&["update", "--pids-limit", "1", &bundle.id]).contains("not running"));
}
