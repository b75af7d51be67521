//! What instances use, in one shape.

use super::{Bed, at_both_levels};

at_both_levels!(one_schema);

/// Families that every instance has, wherever it runs and whoever runs it.
const ALWAYS: [&str; 9] = [
    "proa_instance_up",
    "proa_instance_paused",
    "proa_instance_start_time_seconds",
    "proa_cpu_usage_seconds_total",
    "proa_cpus",
    "proa_memory_usage_bytes",
    "proa_pids",
    "proa_monitor_memory_bytes",
    "proa_monitor_cpu_seconds_total",
];

/// Done by the first process itself: without a cgroup nobody counts those that have ended.
const WORK: &str = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; echo -; exec sleep 1000";

fn one_schema(bed: &Bed) {
    assert_eq!(bed.ok(&["metrics"]), "");
    let id = bed.detach("figured", &[], &["sh", "-c", WORK]);
    bed.proa.wait_for("some work", || bed.ok(&["logs", "figured"]).ends_with('-'));
    let text = bed.ok(&["metrics"]);
    let labels = format!(r#"id="{id}",name="figured",image="busybox",isolation="{}""#, bed.level);
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{{labels}}} ")));
        line.and_then(|number| number.parse::<f64>().ok())
    };
    for name in ALWAYS {
        assert!(value(name).is_some(), "{name}: {text}");
    }
    assert_eq!((value("proa_instance_up"), value("proa_instance_paused")), (Some(1.0), Some(0.0)));
    assert_eq!(value("proa_pids"), Some(1.0));
    assert!(value("proa_cpu_usage_seconds_total").unwrap() > 0.01);
    assert_eq!(value("proa_vmm_cpu_seconds_total").is_some(), bed.is_vm());
    assert!(value("proa_network_receive_bytes_total").is_some(), "{text}");
    let open = bed.ok(&["metrics", "--format", "openmetrics"]);
    assert!(open.ends_with("# EOF"));
    let stats = bed.ok(&["stats", "--no-stream", "--format", "json", "figured"]);
    for field in ["CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs", "Name", "ID", "Container"] {
        assert!(stats.contains(&format!("\"{field}\":\"")), "{field}: {stats}");
    }
    assert!(stats.contains("\"PIDs\":\"1\""), "{stats}");
    bed.ok(&["rm", "-f", "figured"]);
}
