//! `proa policy check`: instances, run lines, Compose files, Kubernetes YAML.

use crate::harness::Proa;

fn check(proa: &Proa, arguments: &[&str]) -> (i32, String) {
    let output = proa.run(&[&["policy", "check"], arguments].concat());
    (output.code, output.stdout + &output.stderr)
}

#[test]
fn run_lines_and_instances() {
    let proa = Proa::with_busybox();
    let (code, text) = check(&proa, &["--", "run", "busybox", "ls", "--privileged"]);
    assert_eq!((code, text.as_str()), (0, "run line: keeps baseline\n"));
    let line = ["--policy", "baseline", "--", "run", "--privileged", "-v", "/etc:/x", "busybox"];
    let (code, text) = check(&proa, &line);
    assert_eq!(code, 1);
    for word in ["breaks baseline (2)", "Privileged Containers", "leave --privileged out", "/etc of the host"]
    {
        assert!(text.contains(word), "{word} in {text}");
    }
    // What the image says counts; one that is not here says nothing.
    let hard = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "9:9"];
    let line = [&["--policy", "restricted", "--", "create"], &hard[..], &["no-such-image"]].concat();
    assert_eq!(check(&proa, &line).0, 0);
    assert_eq!(proa.run(&["create", "--name", "open", "--network", "host", "busybox"]).code, 0);
    let made = proa
        .run(&[&["create", "--name", "closed", "--policy", "restricted"], &hard[..], &["busybox"]].concat());
    assert_eq!(made.code, 0, "{made:?}");
    let (code, text) = check(&proa, &["--policy", "restricted", "closed", "open"]);
    assert_eq!(code, 1);
    assert!(
        text.starts_with("instance closed: keeps restricted\ninstance open: breaks restricted"),
        "{text}"
    );
    let shown = proa.run(&["inspect", "--format", "{{.HostConfig.Policy}}", "closed"]).stdout;
    assert_eq!(shown, "restricted\n");
    for (arguments, word) in [
        (&[][..], "nothing to check"),
        (&["nobody"], "nobody"),
        (&["--policy", "strong", "open"], "strong"),
        (&["--format", "yaml", "open"], "yaml"),
        (&["--", "exec", "open"], "exec"),
        (&["--", "run", "--no-such-flag", "busybox"], "--no-such-flag"),
        (&["--kube", "/no/such/file"], "/no/such/file"),
        (&["--kube", "a", "--compose", "b"], "--compose"),
    ] {
        let (code, text) = check(&proa, arguments);
        assert!(code != 0 && text.contains(word), "{arguments:?}: {code} {text}");
    }
}

#[test]
fn files() {
    let proa = Proa::new();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let compose = file("compose.yaml", "services:\n  web: {image: w, privileged: true}\n  db: {image: d}\n");
    let (code, text) = check(&proa, &["--compose", &compose]);
    assert_eq!(code, 1);
    assert!(text.contains("service db: keeps baseline"), "{text}");
    assert!(
        text.contains("service web: breaks baseline (1)") && text.contains("remove privileged"),
        "{text}"
    );
    let kube =
        file("pod.yaml", "kind: Pod\nmetadata: {name: p}\nspec: {hostPID: true, containers: [{name: c}]}\n");
    let (code, text) = check(&proa, &["--kube", &kube, "--format", "json"]);
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["policy"], "baseline");
    assert_eq!(report["checked"][0], "pod/p c");
    assert_eq!(report["violations"][0]["control"], "Host Namespaces");
    assert_eq!(report["violations"][0]["mend"], "spec.hostPID: false");
    let piped = proa
        .run_with_input(&["policy", "check", "--kube", "-"], b"kind: Pod\nspec: {containers: [{name: c}]}\n");
    assert_eq!((piped.code, piped.stdout.as_str()), (0, "pod/unnamed c: keeps baseline\n"), "{piped:?}");
    let broken = file("broken.yaml", "kind: [");
    let (code, text) = check(&proa, &["--kube", &broken]);
    assert!(code == 1 && text.contains("broken.yaml"), "{text}");
}
