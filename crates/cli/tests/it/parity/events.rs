//! What happens to instances, as `events` tells it.

use super::{Bed, at_both_levels};

at_both_levels!(networks_and_volumes_tell_of_their_instances; a_life, out_of_memory_is_told);

/// Actions since the beginning, without their arguments.
fn actions(bed: &Bed, filter: &str) -> Vec<String> {
    let format = ["--format", "{{.Action}}"];
    let told =
        bed.ok(&[&["events", "--since", "1", "--until", "0s", "--filter", filter][..], &format].concat());
    told.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect()
}

fn a_life(bed: &Bed) {
    // Ends by itself should this test fail.
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 110;
    let follower = bed.proa.spawn(&["events", "--filter", "event=destroy", "--until", &until.to_string()]);
    let id = bed.detach("lived", &["--label", "tier=one"], &["sleep", "1000"]);
    bed.ok(&["exec", "lived", "true"]);
    bed.ok(&["exec", "-d", "lived", "sh", "-c", "exit 3"]);
    bed.proa.wait_for("the end of the detached one", || actions(bed, "event=exec_die").len() == 2);
    assert_eq!(bed.proa(&["exec", "lived", "no-such-program"]).code, 127);
    bed.ok(&["pause", "lived"]);
    bed.ok(&["unpause", "lived"]);
    bed.ok(&["rename", "lived", "relived"]);
    bed.ok(&["stop", "-t", "0", "relived"]);
    bed.ok(&["rm", "relived"]);
    let exec = ["exec_create", "exec_start", "exec_die"];
    let before = ["create", "start"];
    let after = ["pause", "unpause", "rename", "kill", "kill", "die", "stop", "destroy"];
    let expected = [&before[..], &exec, &exec, &exec, &after].concat();
    assert_eq!(actions(bed, "type=container"), expected);
    // The name is the one it has at the moment.
    let told = |event: &str, format: &str| {
        let filter = format!("event={event}");
        bed.ok(&["events", "--since", "1", "--until", "0s", "--filter", &filter, "--format", format])
    };
    let format = "{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}} {{.Actor.Attributes.tier}}";
    assert_eq!(told("die", format), "relived 137 one");
    assert_eq!(
        told("start", "{{.Actor.Attributes.name}} {{.Actor.Attributes.image}} {{.ID}}"),
        format!("lived busybox {id}")
    );
    let codes = told("exec_die", "{{.Actor.Attributes.exitCode}}");
    assert_eq!(codes.lines().collect::<Vec<_>>(), ["0", "3", "127"]);
    assert_eq!(told("kill", "{{.Actor.Attributes.signal}}"), "15\n9");
    assert_eq!(told("rename", "{{.Actor.Attributes.oldName}}"), "/lived");
    let line =
        bed.ok(&["events", "--since", "1", "--until", "0s", "--filter", "event=die", "--format", "json"]);
    assert!(
        line.starts_with(r#"{"status":"die","id":""#) && line.contains(r#""Type":"container""#),
        "{line}"
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(follower.pid() as i32).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let followed = follower.finish().stdout;
    assert_eq!(followed.lines().count(), 1, "{followed}");
    assert!(
        followed.contains(&format!("container destroy {id} (image=busybox, name=relived, tier=one)")),
        "{followed}"
    );
}

fn networks_and_volumes_tell_of_their_instances(bed: &Bed) {
    for network in ["lan", "wan"] {
        bed.ok(&["network", "create", network]);
    }
    let id = bed.detach("told", &["--network", "lan", "-v", "kept:/kept"], &["sleep", "1000"]);
    bed.ok(&["network", "connect", "wan", "told"]);
    bed.ok(&["kill", "told"]);
    bed.ok(&["wait", "told"]);
    let told = |filters: &[&str], format: &str| {
        let filters: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        let ask = ["events", "--since", "1", "--until", "0s", "--format", format];
        bed.ok(&[&ask[..], &filters].concat()).replace(&id, "ID")
    };
    let networks = told(
        &["type=network", "event=connect", "event=disconnect"],
        "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}} {{.Actor.Attributes.container}}",
    );
    let expected = [
        "connect lan bridge ID",
        "connect wan bridge ID",
        "disconnect lan bridge ID",
        "disconnect wan bridge ID",
    ];
    assert_eq!(networks.lines().collect::<Vec<_>>(), expected);
    let volumes = told(
        &["type=volume", "event=mount", "event=unmount"],
        "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.container}}",
    );
    assert_eq!(volumes.lines().collect::<Vec<_>>(), ["mount kept ID", "unmount kept ID"]);
}

fn out_of_memory_is_told(bed: &Bed) {
    // The first process lives on, so the end of memory is told while it does.
    let script = "tail /dev/zero; echo over; exec sleep 1000";
    bed.detach("hog", &["-m", "48m", "--memory-swap", "48m"], &["sh", "-c", script]);
    bed.proa.wait_for("the end of memory", || actions(bed, "container=hog").contains(&"oom".to_owned()));
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.Status}}", "hog"]), "running");
    bed.ok(&["rm", "-f", "hog"]);
    assert_eq!(actions(bed, "container=hog").iter().filter(|action| *action == "oom").count(), 1);
}
